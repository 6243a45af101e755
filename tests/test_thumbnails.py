"""The pictures beside the workflows: frames of a video above its graph, or the graph alone, small enough to ship."""

import io

import numpy as np
import pytest
from pack.tests.e2e import videos
from pack.tools import make_thumbnails
from PIL import Image

GROUP = (300, 200, 1500, 700)  # left, top, right, bottom of the groups in the screenshot
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


@pytest.fixture
def artifacts(tmp_path):
    """A screenshot with a bluish group and the page's blue map in the corner, for two workflows, one with a video."""
    screen = np.full((1057, 1920, 3), 24, np.uint8)
    screen[GROUP[1] : GROUP[3], GROUP[0] : GROUP[2]] = 33, 48, 58
    screen[800:1000, 1670:1900] = 60, 130, 180
    for name in ("with", "without"):
        Image.fromarray(screen).save(tmp_path / f"{name}.png")
    frames = np.array([np.full((64, 96, 3), colour) for colour in COLOURS], np.uint8)
    videos.save(tmp_path / "with.mp4", frames.repeat(3, 0), fps=8)
    return tmp_path


def test_graph_is_cut_out_of_the_page(artifacts):
    graph = make_thumbnails.thumbnail("without", artifacts)
    shape = (GROUP[3] - GROUP[1] + 2 * make_thumbnails.ROOM) / (GROUP[2] - GROUP[0] + 2 * make_thumbnails.ROOM)
    assert graph.width == 512 and graph.height == pytest.approx(512 * shape, abs=2)


def test_frames_from_first_to_last_stand_above_the_graph(artifacts):
    graph, both = (make_thumbnails.thumbnail(name, artifacts) for name in ("without", "with"))
    assert both.crop((0, both.height - graph.height, 512, both.height)).tobytes() == graph.tobytes()
    middle = (both.height - graph.height) // 2
    seen = [both.getpixel((round((number + 0.5) * 512 / 3), middle)) for number in range(3)]
    assert np.abs(np.array(seen) - COLOURS).max() < 12  # of 255, by the video's codec


def test_noise_becomes_small_enough_too():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 512, 3), dtype=np.uint8))
    content = make_thumbnails.jpeg(noise)
    assert content.startswith(b"\xff\xd8\xff") and Image.open(io.BytesIO(content)).size == (512, 400)
    assert len(content) < make_thumbnails.MOST_BYTES
