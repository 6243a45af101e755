"""ConsisID on MODEL, and the features of a face as CONDITIONING."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...cogvideox.checkpoint import normalise_branch
from ...cogvideox.consisid import ConsisID, ConsisIDConfig
from ...cogvideox.detection import consisid_config
from ...cogvideox.keys import CONSISID
from .branches import Attachment, attach, attached, base_model, build, once, read_branch, with_branch, with_patch
from .conditioning import VideoConditioning, check_image, encode_frames, fit, image_to_video
from .files import read_state_dict
from .patches import Window
from .sampling import require_cogvideox

NAME, LOADER = "ConsisID", "Load CogVideoX ConsisID"
EMBEDDING, MAPS = "consisid_embedding", "consisid_maps"
# Names of diffusers' process_face_embeddings: the embedding of the face, and maps of its vision tower.
ID_COND, ID_VIT_HIDDEN = "id_cond", "id_vit_hidden"
KEYPOINT_FRAME = 1  # the latent frame that holds the picture of the face's key points


def load_consisid(model, path: Path, weight_dtype: str = "auto"):
    """Return a clone of MODEL (or of the transformer in the file) that keeps the face in its prompts."""
    state_dict = normalise_branch(read_branch(path), CONSISID, NAME)
    config = consisid_config(state_dict)
    model = base_model(model, path, weight_dtype)
    variant = require_cogvideox(model).variant
    body = variant.transformer
    if (body.inner_dim, body.patch_size_t) != (config.inner_dim, None) or config.num_cross_attn > body.num_layers:
        raise ValueError(
            f"This ConsisID belongs to a model {config.inner_dim} wide without patches in time, like "
            f"CogVideoX-5B-I2V, and got {variant.name}. Load the model that it was trained with."
        )
    interval = body.num_layers // config.num_cross_attn
    network, _ = build(ConsisID, config, state_dict, weight_dtype, variant)

    def diffusion_model(executor, x, *args):
        *args, options = args
        _, strength = attached(options, NAME)
        if not strength:
            return executor(x, *args, options)

        def extract(attachment: Attachment) -> torch.Tensor:
            embedding, maps = (attachment.tokens[name].to(x) for name in (EMBEDDING, MAPS))
            return network.local_facial_extractor(embedding, list(maps.unbind(1)))

        face = once(options, NAME, extract).expand(len(x), -1, -1)

        def look(args: dict[str, Any]) -> dict[str, torch.Tensor]:
            index, rest = divmod(args["block_index"], interval)
            if rest or index >= config.num_cross_attn:
                return {"img": args["img"]}
            seen = network.perceiver_cross_attention[index](face, args["img"])
            return {"img": torch.add(args["img"], seen, alpha=strength)}

        return executor(x, *args, with_patch(options, "double_block", look))

    return with_branch(model, NAME, network, diffusion_model)


class Identity(Attachment):
    """The features of a face, which a ConsisID reads in the widths that it was trained with."""

    def check(self, model, shape: torch.Size) -> None:
        super().check(model, shape)
        (patcher,) = model.get_additional_models_with_key(NAME)
        config: ConsisIDConfig = patcher.model.config
        embedding, maps = self.tokens[EMBEDDING], self.tokens[MAPS]
        if (embedding.shape[-1], *maps.shape[1::2]) != (config.id_dim, config.num_scale, config.vit_dim):
            raise ValueError(
                f"The identity holds an embedding {embedding.shape[-1]} wide and {maps.shape[1]} maps "
                f"{maps.shape[-1]} wide, and this ConsisID reads {config.id_dim}, {config.num_scale} and "
                f"{config.vit_dim}. Make it with the face and vision models of ConsisID."
            )


def read_identity(source: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embedding [1, D] and the maps [1, N, tokens, width] of a face.

    `source` is a file's path, a mapping of `id_cond` and `id_vit_hidden` or a pair of them; the maps may be stacked, a
    list, or in a file `id_vit_hidden.0` and on.
    """
    if isinstance(source, Path):
        source = read_state_dict(source)[0]
    if isinstance(source, Mapping):
        numbered = [source[key] for key in sorted(source) if str(key).startswith(f"{ID_VIT_HIDDEN}.")]
        source = source.get(ID_COND), source.get(ID_VIT_HIDDEN, numbered)
    embedding, maps = source if isinstance(source, tuple | list) and len(source) == 2 else (None, None)
    if isinstance(maps, tuple | list) and maps and all(isinstance(part, torch.Tensor) for part in maps):
        maps = torch.stack([part.reshape(-1, part.shape[-1]) for part in maps])
    if not isinstance(embedding, torch.Tensor) or not isinstance(maps, torch.Tensor) or maps.ndim not in (3, 4):
        raise ValueError(
            "The identity holds no face features: it must be id_cond [1, 1280] and id_vit_hidden, five maps "
            "[1, 577, 1024]. Make them as diffusers' process_face_embeddings does, or connect a pack that gives them."
        )
    return embedding.reshape(1, -1).float(), maps.reshape(1, -1, *maps.shape[-2:]).float()


def identity_to_video(
    positive,
    negative,
    vae,
    width: int,
    height: int,
    length: int,
    batch_size: int,
    image: torch.Tensor,
    identity: Any,
    strength: float,
    start_percent: float,
    end_percent: float,
    face_keypoints: torch.Tensor | None = None,
) -> VideoConditioning:
    """Condition on a picture of a person, IMAGE, and the features of the face."""
    embedding, maps = read_identity(identity)
    window = Window(start_percent, end_percent)
    made = image_to_video(positive, negative, vae, width, height, length, batch_size, start_image=image)
    if face_keypoints is not None:
        check_image("picture of key points", face_keypoints)
        picture = fit("picture of key points", face_keypoints[:1], width, height)[0]
        for _, values in [*made.positive, *made.negative][:1]:  # all prompts hold the tensor that was made above
            if values["concat_latent_image"].shape[2] > KEYPOINT_FRAME:
                values["concat_latent_image"][:, :, KEYPOINT_FRAME] = encode_frames(vae, picture)
    attachment = Identity(NAME, LOADER, {}, {EMBEDDING: embedding, MAPS: maps}, strength, window)
    prompts = attach(made.positive, attachment), attach(made.negative, attachment)
    return VideoConditioning(*prompts, made.latent, made.note)
