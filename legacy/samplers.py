"""Samplers with their schedules, and what they start from."""

from __future__ import annotations

from .control import Control
from .graph import Node, Source
from .images import FOREIGN_LATENTS
from .patches import TILED, TILES, Patches
from .prompts import Prompts
from .rebuilding import EMPTY
from .report import NEEDS, Missing, label

WARPED_NOISE = {  # of ComfyUI-VideoNoiseWarp: its widgets in order
    "GetWarpedNoiseFromVideo": (
        "noise_channels",
        "noise_downtemp_interp",
        "target_latent_count",
        "degradation",
        "latent_shape",
        "seed",
    ),
    "GetWarpedNoiseFromVideoCogVideoX": ("noise_downtemp_interp", "num_frames", "degradation", "seed"),
}
RAFT = "raft_large_C_T_SKHT_V2-ff5fadd5.safetensors"
DDIM, DPM = "ddim", "dpm"
REFERENCE_CFG = "reference"

# Schedulers of the wrapper: the native sampler, and what to say of it. With dpm it switched dynamic guidance on.
OWN_SAMPLERS = {
    "CogVideoXDDIM": DDIM,
    "DDIM": DDIM,
    TILED: DDIM,
    "CogVideoXDPMScheduler": DPM,
    "DPM": DPM,
}
STOCK_SAMPLERS = {
    "DPM++": ("dpmpp_2m", ""),
    "Euler": ("euler", ""),
    "Euler A": ("euler_ancestral", ""),
    "LCMScheduler": ("lcm", ""),
    "UniPCMultistepScheduler": ("uni_pc_bh2", "one order higher than the wrapper's"),
    "HeunDiscreteScheduler": ("heun", "on the model's own noise schedule, which the wrapper's did not follow"),
    "DEISMultistepScheduler": ("deis", "on the model's own noise schedule, which the wrapper's did not follow"),
    "SASolverScheduler": ("sa_solver", "on the model's own noise schedule, which the wrapper's did not follow"),
    "PNDM": ("ipndm", "the nearest there is, on the model's own noise schedule"),
}
# Those of diffusers that know no noise shift.
GENERIC = {"DDIM", *STOCK_SAMPLERS}


class Samplers(Prompts, Patches, Control):
    """The wrapper's sampler, and what every sampler of it shares."""

    def _conds(self, sampler: Node) -> list[Source | None]:
        embeds = self.source(sampler, "embeds")
        if embeds is not None:
            made = self.build(self.origin(embeds)) if self.is_old(self.origin(embeds)) else {}
            return [made.get("positive"), made.get("negative")]
        return [self.native(self.source(sampler, name)) for name in ("positive", "negative")]

    def _model(self, sampler: Node) -> Source | None:
        loader = self.loader_of(sampler, "model", "pipeline")
        if loader is not None and self.is_old(loader):
            return self.build(loader).get("model")
        source = self.source(sampler, "model", "pipeline")
        # Through a subgraph's edge, or a switch of another pack.
        if loader is None or self.carries_old(loader, "model", "pipe"):
            return source
        self.report.note(
            f"{label(sampler)}: its model comes from {label(loader)}, which was not converted. Connect a MODEL, "
            "and a VAE to what encodes and decodes."
        )
        return None

    def _is_control(self, sampler: Node) -> bool:
        """Say whether the wrapper took a model for one with a control video: by its name."""
        name = self.model_name(sampler)
        return "pose" in name or "control" in name

    def _build_CogVideoSampler(self, node: Node) -> dict[str, Source | None]:
        model = self._patches(node, self._model(node))
        conds = self._conds(node)
        latent: Source | None = None
        control = self.origin(self.source(node, "controlnet"))
        if control is not None and self.is_old(control):
            try:
                conds = self._controlled(control, node, conds)
            except Missing as missing:
                self.no_equal(control, NEEDS.format(missing.args[0]))
        image = self.source(node, "image_cond_latents")
        if image is not None:
            try:
                conds, latent = self._image_condition(node, image, conds)
                if (encoder := self.origin(image)) is not None and not self.runs(encoder):
                    latent = None  # what is left out makes no video: another node must
            except Missing as missing:
                self._without(node, "image condition", missing)
        samples = self.source(node, "samples")
        warped = self.origin(samples)
        if warped is not None and warped.type in WARPED_NOISE and "CogVideoXWarpedNoise" in self.schema:
            return self._warped_noise(node, warped, model, conds, latent)
        latent = self._start(node, samples, latent)
        model, conds = self._tora(node, model, conds, latent)
        return self._sampler(node, model, conds, latent, "cfg", "denoise_strength")

    def _without(self, node: Node, what: str, missing: Missing) -> None:
        self.report.note(f"{label(node)}: its {what} needs {missing.args[0]}, which this version does not have.")

    def _image_condition(
        self, sampler: Node, image: Source, conds: list[Source | None]
    ) -> tuple[list[Source | None], Source | None]:
        encoder = self.origin(image)
        if not self.is_old(encoder) or encoder.type not in (
            "CogVideoImageEncode",
            "CogVideoImageEncodeFunInP",
            "CogVideoImageInterpolationEncode",
        ):
            self.report.note(
                f"{label(sampler)}: its image condition comes from {label(encoder)}, which cannot be carried over. "
                "Use CogVideoX Image to Video."
            )
            return conds, None
        self.built.setdefault(encoder.id, {})
        start = self.native(self.source(encoder, "start_image", "image"))
        end = self.native(self.source(encoder, "end_image"))
        if self._is_control(sampler):
            names = (encoder, "strength", "start_percent", "end_percent")
            conds, latent = self.control_to_video(encoder, sampler, conds, start, names, "num_frames", None)
        else:
            if self.source(encoder, "mask") is not None:
                self.report.note(
                    f"{label(encoder)}: the mask has no equal and was left out. CogVideoX Inpaint Video takes masks."
                )
            size = self.made_size(start)
            conds, latent = self.image_to_video(
                encoder, sampler, conds, start, end, (encoder, "noise_aug_strength"), "num_frames", size
            )
            self._image_span(encoder, sampler, self.new[latent[0]])
        self.built[encoder.id]["samples"] = latent
        return conds, latent

    def _image_span(self, encoder: Node, sampler: Node, target: Node) -> None:
        """Carry how strongly and when an image works, where the native node can be told."""
        if "image_strength" in target.made["sockets"]:
            self.carry(target, "image_strength", encoder, "strength")
            self.window(target, encoder, "start_percent", "end_percent", sampler, "image_")
            return
        values = [self.value(encoder, name) for name in ("strength", "start_percent", "end_percent")]
        if values not in ([None] * 3, [1, 0, 1]):
            self.report.note(
                f"{label(encoder)}: strength and percents of a start image have no equal and were left out."
            )

    def made_size(self, image: Source | None) -> Node | None:
        """Return the node that chose the size of an image, where the conversion knows it."""
        node = self.new.get(image[0]) if image else None
        scaled = node is not None and node.type == "ImageScale" and self.runs(node)
        source = node.inputs.get("width") if scaled else None
        return self.new.get(source[0]) if source else None

    def _start(self, sampler: Node, samples: Source | None, latent: Source | None) -> Source | None:
        """Return what a sampler starts from: a video to repaint, an empty one, or that of the image condition."""
        origin = self.origin(samples)
        if origin is not None and not self.runs(origin):
            origin = samples = None
        if origin is not None and self.is_old(origin) and origin.type == "CogVideoImageEncode":
            self.built.setdefault(origin.id, {})
            video = self.native(self.source(origin, "start_image", "image"))
            made = self.video_latent(origin, sampler, video, "num_frames")
            self.built[origin.id].setdefault("samples", made)
            if self._denoise(sampler) == 1:
                self.report.note(
                    f"{label(sampler)}: the wrapper took its samples for noise at denoise 1; here the video is encoded "
                    "and fully repainted."
                )
            return made
        if origin is not None and self.is_old(origin):
            return self.native(samples)
        if origin is not None and origin.type in EMPTY:
            return latent or self._empty(sampler, origin)
        if samples is not None and self.stranger(samples) is None:
            return self.native(samples)
        if origin is not None:
            instead = "They were left out." if latent else "An empty video stands in; set its size."
            self.report.note(f"{FOREIGN_LATENTS.format(label(sampler), label(origin))} {instead}")
        if latent is not None:
            return latent
        target = self.beside(sampler, "EmptyCogVideoXLatentVideo")
        if self.value(sampler, "width") is not None:
            self._carry_size(target, sampler)
        self._length(target, sampler)
        return target.id, 0

    def _length(self, target: Node, sampler: Node) -> None:
        if (name := self.frames_of(sampler)) is not None:
            self.set_length(target, sampler, name)

    def _empty(self, sampler: Node, origin: Node) -> Source:
        alone = self.serves_old(origin)
        target = (
            self.claim(origin, "EmptyCogVideoXLatentVideo")
            if alone
            else self.beside(sampler, "EmptyCogVideoXLatentVideo")
        )
        for name, value in self._stock_values(origin, "width", "height").items():
            source = self.graph.input_of(origin, name)
            if source is not None:
                self.link(target, name, self.native(source))
            elif isinstance(value, int):
                self.set(target, name, value, origin)
        self._length(target, sampler)
        return target.id, 0

    def _sampler(
        self,
        node: Node,
        model: Source | None,
        conds: list[Source | None],
        latent: Source | None,
        cfg: str,
        denoise: str,
    ) -> dict[str, Source | None]:
        scheduler = self._scheduler(node)
        if scheduler in STOCK_SAMPLERS:
            target = self._stock_sampler(node, model, scheduler, denoise)
        else:
            if scheduler not in OWN_SAMPLERS:
                self.report.note(f"{label(node)}: the scheduler {scheduler} is unknown; ddim stands in.")
            name = OWN_SAMPLERS.get(scheduler, DDIM)
            target = self.claim(node, "CogVideoXSampler", {"sampler_name": name})
            # The wrapper's dynamic guidance came with dpm, but not in context windows.
            if name == DPM and self.source(node, "context_options") is None:
                target.values["dynamic_cfg"] = REFERENCE_CFG
                shortened = ", but for the steps that denoise leaves out" if self._denoise(node) < 1 else ""
                self.report.note(
                    f"{label(node)}: dynamic_cfg is 'reference', as the wrapper had it with {scheduler}{shortened}; "
                    "'cosine over steps' is what the authors describe."
                )
            self.carry(target, "seed", node, "seed")
            self._steps(target, node, denoise)
            self.link(target, "latent_image", latent)
            self.link(target, "model", model)
        self.carry(target, "cfg", node, cfg)
        self.link(target, "positive", conds[0])
        self.link(target, "negative", conds[1])
        self.link(target, "latent_image", latent)
        self.link(target, "model", model)
        return {"samples": (target.id, 0), "pipe": None}

    def _scheduler(self, node: Node) -> str:
        """Return the scheduler of a sampler; with tiles the wrapper took DDIM, whatever was chosen."""
        scheduler = str(self.value(node, "scheduler") or "CogVideoXDDIM")
        options = self.origin(self.source(node, "context_options"))
        if options is not None and self.is_old(options) and self.value(options, "context_schedule") == TILES:
            scheduler = TILED
        elif node.type == "CogVideoSampler" and "context_options" not in self.reading(node).era.inputs:
            return scheduler  # when there were no others, DDIM was that of CogVideoX
        if scheduler in GENERIC and "2b" in self.model_name(node):
            self.report.note(
                f"{label(node)}: {scheduler} left out the noise shift of the 2B models in the wrapper; here it is kept."
            )
        return scheduler

    def _steps(self, target: Node, node: Node, denoise: str) -> None:
        """Carry steps and denoise: the wrapper ran the last int(steps * denoise), the host counts what is run."""
        strength = self._denoise(node) if self.value(node, denoise) is not None else 1.0
        if strength == 1.0 or any(self.linked(node, name) for name in ("steps", denoise)):
            self.carry(target, "steps", node, "steps")
            self.carry(target, "denoise", node, denoise)
            return
        for old, new in (("steps", "steps"), (denoise, "denoise")):
            self.moved[str(node.id), old] = (str(target.id), new)
        steps, strength = kept_steps(self.value(node, "steps"), strength)
        self.set(target, "steps", steps, node)
        self.set(target, "denoise", strength, node)

    def _stock_sampler(self, node: Node, model: Source | None, scheduler: str, denoise: str) -> Node:
        name, difference = STOCK_SAMPLERS[scheduler]
        target = self.claim(node, "SamplerCustom", {"add_noise": True})
        self.carry(target, "noise_seed", node, "seed")
        chosen = self.beside(node, "KSamplerSelect", {"sampler_name": name})
        sigmas = self.beside(node, "CogVideoXScheduler")
        self._steps(sigmas, node, denoise)
        self.link(sigmas, "model", model)
        self.link(target, "sampler", (chosen.id, 0))
        self.link(target, "sigmas", (sigmas.id, 0))
        if difference:
            self.report.note(f"{label(node)}: {scheduler} became {name}, {difference}.")
        return target

    def _warped_noise(
        self, node: Node, warped: Node, model: Source | None, conds: list[Source | None], latent: Source | None
    ) -> dict[str, Source | None]:
        """Sample from noise that moves as a video does; another pack's node made it, laid out for the wrapper."""
        video = self.native(self.graph.input_of(warped, "images"))
        saved = self._stock_values(warped, *WARPED_NOISE[warped.type])
        # Another pack's node keeps its place where somebody looks at its pictures or decodes its noise.
        alone = all(user.type == node.type for user, _ in self.graph.users(warped))
        noise = (self.claim if alone else self.beside)(warped if alone else node, "CogVideoXWarpedNoise")
        for name, old in (("seed", "seed"), ("degradation", "degradation"), ("downsampling", "noise_downtemp_interp")):
            slot = noise.made["slots_by_name"][name]
            source = self.graph.input_of(warped, old)
            if source is not None:
                self.link(noise, name, self.native(source))
            elif slot.fits(saved[old]):
                self.set(noise, name, saved[old], warped)
            elif saved[old] is not None:
                self.report.note(f"{label(warped)}: {old} {saved[old]} has no equal; {slot.default} stands in.")
        self.link(noise, "video", video)
        if "OpticalFlowLoader" in self.schema:
            others = (self.listed("OpticalFlowLoader", "model_name") or ())[:1]
            advice = "put {} into models/optical_flow and refresh the page."
            model_name = self.find(node, "OpticalFlowLoader", "model_name", (RAFT, *others), advice)
            flow = self.beside(node, "OpticalFlowLoader", {"model_name": model_name})
            self.link(noise, "optical_flow", (flow.id, 0))
        self.report.note(f"{label(node)}: its noise comes from CogVideoX Warped Noise now, not from {label(warped)}.")
        if latent is None:
            empty = self.beside(node, "EmptyCogVideoXLatentVideo")
            if video is not None:
                size = self.size_of(video, node)
                self._sized(empty, (size.id, 0), (size.id, 1))
            self._length(empty, node)
            latent = (empty.id, 0)
        target = self.claim(node, "SamplerCustomAdvanced")
        guider, sigmas = self.beside(node, "CFGGuider"), self.beside(node, "CogVideoXScheduler")
        self.carry(guider, "cfg", node, "cfg")
        self._steps(sigmas, node, "denoise_strength")
        scheduler = self._scheduler(node)
        if scheduler in STOCK_SAMPLERS:
            chosen = self.beside(node, "KSamplerSelect", {"sampler_name": STOCK_SAMPLERS[scheduler][0]})
        else:
            name = OWN_SAMPLERS.get(scheduler, DDIM)
            chosen = self.beside(node, "CogVideoXSamplerSelect", {"sampler_name": name})
            if name == DPM:
                model = self._behind(self.beside(node, "CogVideoXDynamicCFG", {"schedule": REFERENCE_CFG}), model)
        self.link(guider, "model", model)
        self.link(guider, "positive", conds[0])
        self.link(guider, "negative", conds[1])
        self.link(sigmas, "model", model)
        for name, maker in (("noise", noise), ("guider", guider), ("sampler", chosen), ("sigmas", sigmas)):
            self.link(target, name, (maker.id, 0))
        self.link(target, "latent_image", latent)
        return {"samples": (target.id, 0)}


def kept_steps(steps: int, denoise: float) -> tuple[int, float]:
    """Return (steps, denoise) with which the host runs the last int(steps * denoise) of `steps`.

    The host runs `steps` of int(steps / denoise), so denoise is the shortest number that gives the old total.
    """
    kept = max(int(steps * denoise), 1)
    for candidate in (denoise, *(round(kept / steps, digits) for digits in range(2, 7)), kept / (steps + 0.5)):
        if 0 < candidate <= 1 and int(kept / candidate) == steps:
            return kept, candidate
    return kept, kept / steps
