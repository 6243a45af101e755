"""One real ComfyUI server for all tests here, with this pack and a tiny model for each that the workflows name."""

import numpy as np
import pytest
from PIL import Image

from . import models, videos
from .server import COMFYUI, PACK, ROOT, running


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    assert (COMFYUI / "main.py").is_file(), f"There is no ComfyUI in {COMFYUI}. Run dev.py test, or set COMFYUI_PATH."
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("custom_nodes", "input", "output"):
        (base / folder).mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT, target_is_directory=True)
    models.write(base / "models")
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(picture).save(base / "input" / "example.png")
    videos.write(base / "input" / "video.mp4", frames=12, fps=10, width=80, height=48)
    (base / "input" / "cogvideox_clips").mkdir()
    for number in range(2):
        clip = base / "input" / "cogvideox_clips" / f"{number}.mp4"
        videos.write(clip, frames=9 + number, fps=8, width=96, height=64)
        clip.with_suffix(".txt").write_text(f"clip number {number}", encoding="utf-8")
    with running(base) as server:
        yield server
