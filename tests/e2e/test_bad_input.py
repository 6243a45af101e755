"""Names and files meant to do harm are refused, and the server goes on."""

import pickle
from pathlib import Path

import pytest
import torch

from .server import Prompt, Refusal, Server

VAE = "vae/cogvideox_vae_bf16.safetensors"


class Harm:
    """An object that, unpickled, writes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def loading(node: str, **inputs: str) -> Prompt:
    """Return a prompt that loads something and looks at it."""
    return {
        "1": {"class_type": node, "inputs": inputs, "_meta": {}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}, "_meta": {}},
    }


def assert_alive(server: Server, vae: str = "cogvideox_vae_bf16.safetensors") -> None:
    run = server.run(loading("CogVideoXLoadVAE", vae_name=vae))
    assert run.end == "execution_success", run.message


@pytest.mark.parametrize(
    "name", ["../../secret", "../vae/cogvideox_vae_bf16.safetensors", "{base}/secret", "..\\secret"]
)
@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("CogVideoXLoadPipeline", {"pipeline": "{name}", "weight_dtype": "auto"}),
        ("CogVideoXLoadModel", {"model_name": "{name}", "weight_dtype": "auto", "variant": "auto"}),
        ("CogVideoXLoadVAE", {"vae_name": "{name}"}),
        ("CogVideoXLoadTextEncoder", {"text_encoder_name": "{name}"}),
    ],
)
def test_name_outside_the_models_is_refused(server: Server, node: str, inputs: dict, name: str):
    (server.base / "secret").write_text("not a model")
    name = name.format(base=server.base)
    with pytest.raises(Refusal, match="400.*value_not_in_list"):
        server.run(loading(node, **{key: value.format(name=name) for key, value in inputs.items()}))
    assert_alive(server)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize(
    ("node", "folder", "widget"),
    [
        ("CogVideoXLoadVAE", "vae", "vae_name"),
        ("CogVideoXLoadTextEncoder", "text_encoders", "text_encoder_name"),
        ("CogVideoXLoadModel", "diffusion_models", "model_name"),
    ],
)
def test_code_in_a_pickle_does_not_run(server: Server, tmp_path, writer, node: str, folder: str, widget: str):
    marker, file = tmp_path / "harm", server.base / "models" / folder / "harm.pt"
    writer({"weight": Harm(marker)}, file)
    pickle.loads(pickle.dumps(Harm(marker)))
    assert marker.exists(), "the harm of this test is none"
    marker.unlink()
    others = {"weight_dtype": "auto", "variant": "auto"} if node == "CogVideoXLoadModel" else {}
    try:
        run = server.run(loading(node, **{widget: file.name}, **others))
    finally:
        file.unlink()
    assert run.end == "execution_error"
    assert "can run code" in run.message
    assert not marker.exists()
    assert_alive(server)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_file_cut_short_is_refused(server: Server, share: float):
    whole = (server.base / "models" / VAE).read_bytes()
    file = server.base / "models" / "vae" / "cut.safetensors"
    file.write_bytes(whole[: int(len(whole) * share)])
    try:
        run = server.run(loading("CogVideoXLoadVAE", vae_name=file.name))
    finally:
        file.unlink()
    assert run.end == "execution_error"
    assert "Download it again" in run.message
    assert_alive(server)
