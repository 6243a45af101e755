"""NOISE that moves with a video: its optical flow from the host's own flow model or from pictures of it."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F

from ...cogvideox.latents import pixel_frames
from ...cogvideox.variants import SPATIAL_COMPRESSION
from ...cogvideox.warped_noise import scale_flow, warped_noise
from .conditioning import check_image
from .progress import host_progress

# RAFT sees the frames at half size, as in the authors' code, in multiples of 8 px; its smallest feature map needs 128.
FLOW_SCALE, FLOW_STEP, FLOW_LEAST = 0.5, 8, 128
ASPECT_SLACK = 0.02  # how far the shapes of flow and video may be apart
WORKING_NOISE = 9  # numbers held at once in a step of warping, for each of the fine noise; counted as live tensors


@dataclass(frozen=True)
class WarpedNoise:
    """The host's NOISE: `seed`, and `generate_noise`, which warps along `flows` [F - 1, 2, h, w] (right, down)."""

    flows: torch.Tensor
    seed: int
    downsampling: str
    degradation: float
    detail: int

    def generate_noise(self, latent: dict) -> torch.Tensor:
        """Return noise for LATENT [B, 16, T, H, W]; each video of the batch has its own, all move alike."""
        batch, channels, count, height, width = check_video(latent["samples"])
        device = comfy.model_management.get_torch_device()
        fine = channels * height * width * self.detail**2 * self.flows.itemsize
        comfy.model_management.free_memory(WORKING_NOISE * fine, device)  # of what earlier nodes have left there
        flows = self.flows_of(pixel_frames(count), height, width).to(device)

        def step(done: int, total: int) -> None:
            # The node at work is the sampler, whose progress bar counts steps.
            comfy.model_management.throw_exception_if_processing_interrupted()

        videos = []
        for index in range(batch):
            noise = warped_noise(
                flows,
                (channels, count, height, width),
                self.downsampling,
                self.degradation,
                seed=(self.seed + index) % 2**64,
                detail=self.detail,
                progress=step,
            )
            videos.append(noise.cpu())
        return torch.stack(videos)

    def flows_of(self, frames: int, height: int, width: int) -> torch.Tensor:
        """Return the flows between `frames` frames, or raise where they are not those of this video."""
        steps = len(self.flows)
        if steps not in (frames - 1, frames):
            raise ValueError(
                f"The optical flow is that of {steps + 1} frames and the video to make has {frames}. "
                f"Give CogVideoX Warped Noise {frames} frames, or make the LATENT as long as them."
            )
        flow_height, flow_width = self.flows.shape[2:]
        if abs(flow_width * height / (flow_height * width) - 1) > ASPECT_SLACK:
            raise ValueError(
                f"The optical flow has the shape of {flow_width}x{flow_height} px and the video to make "
                f"{width * SPATIAL_COMPRESSION}x{height * SPATIAL_COMPRESSION} px. "
                "Scale and crop the frames to the size of the LATENT, for example with Upscale Image."
            )
        return self.flows[: frames - 1]


def check_video(samples: torch.Tensor) -> tuple[int, ...]:
    """Return the shape [B, 16, T, H, W] of a video's latents, or raise."""
    if samples.ndim != 5:
        raise ValueError(
            f"CogVideoX Warped Noise makes noise for a video and got a LATENT of shape {list(samples.shape)}. "
            "Connect Empty CogVideoX Latent Video to the sampler."
        )
    return tuple(samples.shape)


def warped_noise_source(
    seed: int,
    downsampling: str,
    degradation: float,
    detail: int,
    flow_range: float,
    video: torch.Tensor | None = None,
    optical_flow=None,
    flow: torch.Tensor | None = None,
) -> WarpedNoise:
    """Return NOISE that follows a `video` by the host's OPTICAL_FLOW model, or pictures of its `flow`."""
    if (video is None) == (flow is None):
        raise ValueError(
            "CogVideoX Warped Noise follows either a video or an optical flow. Connect video (with optical_flow) or "
            "flow, and not both."
        )
    if flow is not None:
        check_image("flow", flow)
        flows = picture_flow(flow, flow_range)
    else:
        if optical_flow is None:
            raise ValueError(
                "CogVideoX Warped Noise has a video and nothing to see its motion with. "
                "Connect Load Optical Flow Model to optical_flow."
            )
        check_image("video", video)
        flows = video_flow(video[..., :3], optical_flow)
    return WarpedNoise(flows, seed, downsampling, degradation, detail)


def picture_flow(pictures: torch.Tensor, flow_range: float) -> torch.Tensor:
    """Read IMAGE [N, H, W, 3] as flows [N, 2, H, W] in px: red right, green down, half is rest, 1 is `flow_range`."""
    return ((pictures[..., :2] - 0.5) * (2 * flow_range)).movedim(-1, 1).contiguous()


@torch.no_grad()
def video_flow(video: torch.Tensor, optical_flow) -> torch.Tensor:
    """Return the flows [F - 1, 2, h, w] between frames [F, H, W, 3] by the host's OPTICAL_FLOW model (RAFT)."""
    if len(video) < 2:
        raise ValueError(
            f"An optical flow needs 2 frames or more and the video has {len(video)}. "
            "Connect as many frames as the new video has."
        )
    comfy.model_management.load_model_gpu(optical_flow)
    device = optical_flow.load_device
    half = [max(int(length * FLOW_SCALE), 1) for length in video.shape[1:3]]
    height, width = (max(round(length / FLOW_STEP) * FLOW_STEP, FLOW_LEAST) for length in half)

    def prepared(frame: torch.Tensor) -> torch.Tensor:
        frame = frame.movedim(-1, 0)[None].to(device=device, dtype=torch.float32)
        return F.interpolate(frame, (height, width), mode="area") * 2 - 1

    progress = host_progress(len(video) - 1)
    flows, before = [], prepared(video[0])
    for index, frame in enumerate(video[1:], start=1):
        after = prepared(frame)
        flows.append(scale_flow(optical_flow.model(before, after)[-1][0], *half).cpu())
        before = after
        progress(index, len(video) - 1)
    return torch.stack(flows)
