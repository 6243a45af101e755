"""Video files, written and read with PyAV."""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Video:
    frames: np.ndarray  # [F, H, W, 3], bytes
    fps: float


def write(path: Path, frames: int, fps: int, width: int, height: int) -> None:
    """Write a video in which a bright square moves over a ramp."""
    ramp = np.linspace(0, 160, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    pictures = ramp[None].repeat(frames, 0)
    for number, picture in enumerate(pictures):
        picture[8:24, 2 * number : 2 * number + 16] = 255
    save(path, pictures, fps)


def save(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write `frames`, bytes [F, H, W, 3], as a video."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("h264", rate=fps, options={"crf": "18"})
        (_, stream.height, stream.width, _), stream.pix_fmt = frames.shape, "yuv420p"
        for picture in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())


def read(path: Path) -> Video:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        return Video(np.stack(frames), float(stream.average_rate))
