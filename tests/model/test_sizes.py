"""The sizes that models were trained on, and the requests for prompts."""

import pytest
import torch
from pack.cogvideox.instructions import INSTRUCTIONS, TASKS
from pack.cogvideox.sizes import FITS, FUN_BUCKETS, MODELS, fitting_size, is_trained, nearest_length, token_count
from pack.cogvideox.transformer import CogVideoXTransformer3DModel

TRAINED, SHAPE, SAME = FITS


@pytest.mark.parametrize(
    ("model", "fit", "image", "size"),
    [
        ("5B", TRAINED, None, (720, 480)),
        ("5B", TRAINED, (400, 900), (720, 480)),
        ("5B", SHAPE, (1000, 1000), (592, 592)),
        ("5B", SAME, (1023, 769), (1024, 768)),
        ("1.5", TRAINED, None, (1360, 768)),
        ("1.5", SHAPE, (1920, 1080), (1360, 768)),  # the longer side would be 1365
        ("1.5", SHAPE, (900, 1000), (768, 848)),
        ("1.5", SHAPE, (3000, 500), (1360, 768)),
        ("Fun 5B", TRAINED, (1000, 1000), (512, 512)),
        ("Fun 5B", TRAINED, (720, 480), (608, 416)),
        ("Fun 5B", SHAPE, (480, 720), (416, 608)),
    ],
)
def test_the_size_fits_model_and_image(model, fit, image, size):
    assert fitting_size(model, fit, image, 512) == size
    assert all(side % 16 == 0 for side in size)
    if fit != SAME and (model, fit) != ("5B", SHAPE):
        assert is_trained(model, *size)


def test_buckets_are_the_forty_of_training():
    assert len(set(FUN_BUCKETS)) == len(FUN_BUCKETS) == 40
    assert len({round(tall / wide, 2) for tall, wide in FUN_BUCKETS}) == 40
    assert {tall / wide for tall, wide in FUN_BUCKETS} >= {0.25, 1.0, 4.0}


@pytest.mark.parametrize(("frames", "length"), [(0.8, 1), (4, 1), (6, 9), (48, 49), (80, 81), (160, 161)])
def test_lengths_are_8n_plus_1(frames, length):
    assert nearest_length(frames) == length


@pytest.mark.parametrize("model", MODELS)
def test_weights_and_tokens_are_those_of_the_model(model):
    sizes = MODELS[model]
    with torch.device("meta"):
        network = CogVideoXTransformer3DModel(sizes.transformer)
    count = sum(weight.numel() for weight in network.parameters())
    assert sizes.weights == pytest.approx(count / 1e9, rel=0.01)


def test_tokens_of_the_released_sizes():
    assert token_count("5B", 720, 480, 49) == 17550
    assert token_count("1.5", 1360, 768, 81) == 44880


@pytest.mark.parametrize("task", TASKS)
def test_requests_hold_the_idea_and_the_length(task):
    request = INSTRUCTIONS[task].format(words=90, idea="a {strange} fox")
    assert "about 90 words" in request and request.endswith("a {strange} fox")
    assert 50 < len(request.split()) < 220
