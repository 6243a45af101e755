"""Converted graphs in the host: they fit the live nodes, mean the same numbers, and run."""

import asyncio
import logging

import comfy.samplers
import execution
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from pack.legacy import convert, reduced, samplers, stored_schema
from pack.legacy.native import FILE_COMBOS
from pack.nodes import CogVideoXExtension
from pack.nodes.host import legacy, loading, sampling
from pack.nodes.host.files import find_pipeline
from pack.nodes.host.schema import node_info
from pack.nodes.replacements import REPLACEMENTS
from pack.tests.data.make_legacy_schema import live_schema
from pack.tests.old_graphs import CASES, OldGraph, problems, whole

import nodes

from .versions import newer_only

NODES = {node.GET_SCHEMA().node_id: node for node in asyncio.run(CogVideoXExtension().get_node_list())}


@pytest.fixture(scope="module")
def live():
    """Return the schema of the running host, lists of files included."""
    return live_schema()


@pytest.fixture
def registered(monkeypatch):
    """Let the host know our nodes, as when it has loaded the pack."""
    for name, node in NODES.items():
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, node)


@newer_only
def test_the_stored_schema_is_that_of_the_host(live):
    assert stored_schema() == live, "run tests/data/make_legacy_schema.py"


@pytest.mark.parametrize(("node_type", "era"), CASES)
def test_converted_graphs_fit_the_live_nodes(live, node_type, era):
    listed = {name: reduced(node_info(node)) for name, node in NODES.items()}
    schema = {**live, **listed}
    converted, report = convert(whole(node_type, era).editor(), schema)
    assert report.converted
    # Files of the models are not on this machine: the value is there, the list is not.
    wrong = [one for one in problems(converted, schema) if not any(f" {name} is " in one for name in FILE_COMBOS)]
    assert wrong == []


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    return loading.load_pipeline(find_pipeline("cogvideox-mini"))[0]


def run_of(scheduler: str, steps: int, denoise: float) -> dict:
    """Return the widgets of the native sampler that an old one becomes."""
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    prompts = {"positive": (text, "conditioning"), "negative": (text, "conditioning")}
    given = {"model": (loader, "model"), "samples": (graph.add("EmptyLatentImage"), "LATENT"), **prompts}
    graph.add("CogVideoSampler", steps=steps, denoise_strength=denoise, scheduler=scheduler, cfg=6.0, **given)
    prompt, _ = convert(graph.prompt())
    (inputs,) = [
        node["inputs"] for node in prompt.values() if node["class_type"] in ("CogVideoXSampler", "CogVideoXScheduler")
    ]
    return inputs


@pytest.mark.parametrize("steps", [20, 25, 50])
@pytest.mark.parametrize("denoise", [1.0, 0.8, 0.55, 0.3])
@pytest.mark.parametrize("scheduler", ["CogVideoXDDIM", "CogVideoXDPMScheduler", "DPM++"])
def test_the_noise_levels_are_those_the_wrapper_ran(mini, scheduler, steps, denoise):
    """The wrapper kept the last int(steps * denoise) timesteps of diffusers' scheduler."""
    kind = CogVideoXDPMScheduler if scheduler == "CogVideoXDPMScheduler" else CogVideoXDDIMScheduler
    theirs = kind.from_config(
        dict(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=mini.model.variant.snr_shift_scale,
            timestep_spacing="trailing",
        )
    )
    theirs.set_timesteps(steps)
    timesteps = theirs.timesteps[steps - int(steps * denoise) :]
    made = run_of(scheduler, steps, denoise)
    sigmas = sampling.scheduler_sigmas(mini, made["steps"], made["denoise"])
    assert len(sigmas) == len(timesteps) + 1 and sigmas[-1] == 0
    signal = theirs.alphas_cumprod[timesteps].double()
    ours = 1 / (1 + sigmas[:-1].double() ** 2)
    assert (ours - signal).abs().max() < 1e-6  # measured 5e-8, of the last, which stands for zero


# What the wrapper made of each name of its lists, early ones last.
SCHEDULERS = {
    "CogVideoXDDIM": CogVideoXDDIMScheduler,
    "CogVideoXDPMScheduler": CogVideoXDPMScheduler,
    "DDIM": DDIMScheduler,
    "LCMScheduler": LCMScheduler,
    "DPM++": DPMSolverMultistepScheduler,
    "UniPCMultistepScheduler": UniPCMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
    "Euler A": EulerAncestralDiscreteScheduler,
    "HeunDiscreteScheduler": HeunDiscreteScheduler,
    "DEISMultistepScheduler": DEISMultistepScheduler,
    "SASolverScheduler": SASolverScheduler,
    "PNDM": PNDMScheduler,
    "DDIM_tiled": CogVideoXDDIMScheduler,
    "DPM": CogVideoXDPMScheduler,
}


def test_every_scheduler_of_the_wrapper_is_known():
    assert SCHEDULERS.keys() == samplers.OWN_SAMPLERS.keys() | samplers.STOCK_SAMPLERS.keys()


@pytest.mark.parametrize(("steps", "denoise"), [(25, 1.0), (50, 1.0), (50, 0.6)])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_keeps_its_timesteps_on_the_models_noise(mini, scheduler, steps, denoise):
    """Each visited these timesteps once or more; the noise is that which the model was trained with at them."""
    config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction")
    config |= dict(rescale_betas_zero_snr=True, snr_shift_scale=mini.model.variant.snr_shift_scale)
    config |= dict(timestep_spacing="trailing", steps_offset=0, clip_sample=False, set_alpha_to_one=True)
    theirs = SCHEDULERS[scheduler].from_config(config)
    theirs.set_timesteps(steps)
    visited = torch.unique(theirs.timesteps.round().long()).flip(0)
    if scheduler == "PNDM":  # it also stops half way between the first of them
        visited = visited[(visited + 1) % (1000 // steps) == 0]
    visited = visited[steps - int(steps * denoise) :]
    made = run_of(scheduler, steps, denoise)
    sigmas = sampling.scheduler_sigmas(mini, made["steps"], made["denoise"])
    trained = CogVideoXDDIMScheduler.from_config(config).alphas_cumprod.double()
    signal = 1 / (1 + sigmas[:-1].double() ** 2)
    assert len(signal) == len(visited) == int(steps * denoise)
    assert (signal - trained[visited]).abs().max() < 1e-6  # measured 5e-8


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_guidance_of_every_scheduler_is_carried(scheduler):
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    given = {"model": (loader, "model"), "positive": (text, "conditioning"), "negative": (text, "conditioning")}
    graph.add("CogVideoSampler", scheduler=scheduler, cfg=4.5, seed=3, **given)
    prompt, _ = convert(graph.prompt())
    (inputs,) = [
        node["inputs"] for node in prompt.values() if node["class_type"] in ("CogVideoXSampler", "SamplerCustom")
    ]
    assert inputs["cfg"] == 4.5 and inputs.get("seed", inputs.get("noise_seed")) == 3
    dynamic = "reference" if SCHEDULERS[scheduler] is CogVideoXDPMScheduler else "off"
    assert inputs.get("dynamic_cfg", "off") == dynamic


@pytest.mark.parametrize("steps", [20, 50])
def test_the_guidance_is_that_of_the_wrapper(mini, steps):
    """With dpm: 1 + cfg (1 - cos(pi ((N - t) / N)^5)) / 2 at training timestep t; with ddim, cfg."""
    made = run_of("CogVideoXDPMScheduler", steps, 1.0)
    assert run_of("CogVideoXDDIM", steps, 1.0)["dynamic_cfg"] == "off"
    model = sampling.with_dynamic_cfg(mini, made["dynamic_cfg"])
    function = model.model_options["sampler_cfg_function"]
    sigmas = sampling.scheduler_sigmas(mini, made["steps"], made["denoise"])
    for index, t in enumerate(range(999, 0, -(1000 // steps))):
        args = {
            "cond": torch.ones(1),
            "uncond": torch.zeros(1),
            "cond_scale": made["cfg"],
            "sigma": sigmas[index : index + 1],
            "model": model.model,
            "model_options": {"transformer_options": {"sample_sigmas": sigmas}},
        }
        expected = (
            1 + 6.0 * (1 - torch.cos(torch.tensor(torch.pi * ((steps - t) / steps) ** 5.0, dtype=torch.float64))) / 2
        )
        assert abs(function(args).item() - expected.item()) < 1e-5


def test_percent_windows_hold_the_same_steps(mini):
    """The wrapper applied step i of N where start <= i / N <= end; the host asks for the noise level of a percent."""
    steps, model_sampling = 25, mini.get_model_object("model_sampling")
    sigmas = sampling.scheduler_sigmas(mini, steps)
    for start, end in ((0.0, 0.5), (0.2, 0.6), (0.12, 1.0)):
        theirs = [i for i in range(steps) if start <= i / steps <= end]
        high, low = model_sampling.percent_to_sigma(start), model_sampling.percent_to_sigma(end)
        ours = [i for i in range(steps) if low <= sigmas[i] <= high]
        assert len(set(theirs) ^ set(ours)) <= 1  # one step more or less where a limit falls on a step


@pytest.mark.parametrize("denoise", [1.0, 0.8, 0.5])
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.1, 0.4), (0.2, 1.0)])
def test_percent_windows_of_a_shortened_run_hold_the_same_steps(mini, denoise, start, end):
    """The wrapper counted step i of the kept ones, by all steps: i / N."""
    steps, kept = 20, int(20 * denoise)
    graph = OldGraph()
    loader = graph.add("DownloadAndLoadCogVideoModel", model="THUDM/CogVideoX-5b")
    text = graph.add("CogVideoTextEncode", clip=(graph.add("CLIPLoader"), "CLIP"), prompt="a fox")
    video = graph.add("CogVideoImageEncode", vae=(loader, "vae"), start_image=(graph.add("VHS_LoadVideo"), "IMAGE"))
    enhance = graph.add("CogVideoEnhanceAVideo", start_percent=start, end_percent=end)
    given = {"model": (loader, "model"), "positive": (text, "conditioning"), "negative": (text, "conditioning")}
    given |= {"samples": (video, "samples"), "feta_args": (enhance, "feta_args")}
    graph.add("CogVideoSampler", steps=steps, denoise_strength=denoise, **given)
    made = {node["class_type"]: node["inputs"] for node in convert(graph.prompt())[0].values()}
    window, run = made["CogVideoXEnhanceVideo"], made["CogVideoXSampler"]
    sigmas = sampling.scheduler_sigmas(mini, run["steps"], run["denoise"])[:-1]
    model_sampling = mini.get_model_object("model_sampling")
    high, low = (model_sampling.percent_to_sigma(window[f"{name}_percent"]) for name in ("start", "end"))
    theirs = {i for i in range(kept) if start <= i / steps <= end}
    ours = {i for i in range(kept) if low <= sigmas[i] <= high}
    assert len(theirs ^ ours) <= 1  # one step more or less where a limit falls on a step


# --- runs ------------------------------------------------------------------------------------------------------------


def on_the_mini(graph: dict) -> dict:
    """Let a converted graph use the mini and its size, and save what others would combine."""
    for node in graph.values():
        inputs = node["inputs"]
        for name in ("model_name", "vae_name"):
            if node["class_type"].startswith("CogVideoXLoad") and name in inputs:
                inputs[name] = "cogvideox-mini"
        if node["class_type"] == "CLIPLoader":
            node["class_type"], node["inputs"] = "CogVideoXLoadTextEncoder", {"text_encoder_name": "cogvideox-mini"}
        if node["class_type"] == "VHS_VideoCombine":
            node["class_type"], node["inputs"] = "PreviewImage", {"images": inputs["images"]}
        if node["class_type"] == "LoadImage":
            inputs["image"] = "image.png"
        if node["class_type"] == "CogVideoXSampler":
            inputs["steps"] = 2
        if "length" in inputs and not isinstance(inputs["length"], list):
            inputs["length"] = 9
        for name, value in (("width", 96), ("height", 64)):
            if name in inputs and not isinstance(inputs[name], list):
                inputs[name] = value
    return graph


class Listener:
    client_id, last_node_id, last_prompt_id, sockets_metadata = None, None, None, {}

    def send_sync(self, *args, **kwargs):
        """Take what the host tells a page."""


RUNS = [
    ("CogVideoSampler", -1),
    ("CogVideoSampler", 0),
    ("CogVideoXTeaCache", 0),
    ("CogVideoEnhanceAVideo", 0),
    ("CogVideoContextOptions", 1),
    ("CogVideoTextEncodeCombine", 0),
    ("CogVideoXFunSampler", 1),
]


@pytest.mark.parametrize(("node_type", "era"), RUNS)
def test_converted_graphs_run(registered, live, monkeypatch, node_type, era, tmp_path):
    import folder_paths
    from PIL import Image

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    for name in live:
        if name not in nodes.NODE_CLASS_MAPPINGS:
            monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, extra_node(name))
    Image.new("RGB", (96, 64), "red").save(tmp_path / "image.png")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    data = legacy.convert_prompt({"prompt": whole(node_type, era).prompt(), "client_id": "x"})
    assert data["client_id"] == "x"
    prompt = on_the_mini(data["prompt"])
    valid = asyncio.run(execution.validate_prompt("1", prompt, None))
    assert valid[0], valid[1:]
    runner = execution.PromptExecutor(
        Listener(), cache_type=execution.CacheType.CLASSIC, cache_args={"ram": 0.0, "lru": 0, "ram_inactive": 0.0}
    )
    runner.execute(prompt, "1", {}, valid[2])
    assert runner.success, runner.status_messages
    (images,) = [out["images"] for out in runner.history_result["outputs"].values() if "images" in out]
    assert len(images) == 9


def extra_node(name: str) -> type:
    """Return a stock node that the host keeps in its extras."""
    import importlib

    from pack.tests.data.make_legacy_schema import EXTRAS

    for module in EXTRAS:
        found = importlib.import_module(f"comfy_extras.{module}")
        extension = found.comfy_entrypoint()
        extension = asyncio.run(extension) if asyncio.iscoroutine(extension) else extension
        for node in asyncio.run(extension.get_node_list()):
            if node.GET_SCHEMA().node_id == name:
                return node
    raise KeyError(name)


# --- the ways in -----------------------------------------------------------------------------------------------------


def test_a_posted_native_graph_passes_through(registered):
    data = {"prompt": {"1": {"class_type": "CogVideoXLoadVAE", "inputs": {"vae_name": "x"}}}}
    assert legacy.convert_prompt(data) is data
    assert legacy.convert_prompt({"number": 1}) == {"number": 1}


def test_a_posted_old_graph_is_left_where_its_pack_is_installed(registered, monkeypatch):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "CogVideoSampler", object)
    data = {"prompt": whole("CogVideoSampler", -1).prompt()}
    assert legacy.convert_prompt(data)["prompt"] == whole("CogVideoSampler", -1).prompt()


def test_what_is_converted_is_logged(registered, caplog):
    with caplog.at_level(logging.INFO):
        legacy.convert_prompt({"prompt": whole("CogVideoXFasterCache", 0).prompt()})
    assert "became native CogVideoX nodes" in caplog.text and "CogVideoX Step Cache" in caplog.text


@pytest.mark.parametrize("replacement", REPLACEMENTS, ids=lambda one: one.old_node_id)
def test_replacements_name_inputs_that_are_there(replacement):
    schema = stored_schema()[replacement.new_node_id]["input"]
    names = {*schema["required"], *schema.get("optional", {})}
    assert {entry["new_id"] for entry in replacement.input_mapping} <= names
    from pack.legacy.signatures import eras

    last = eras(replacement.old_node_id)[-1]
    assert {entry["old_id"] for entry in replacement.input_mapping if "old_id" in entry} <= set(last.inputs)
    assert replacement.old_widget_ids == [
        widget.name for widget in last.widgets if widget.name in replacement.old_widget_ids
    ]


def test_samplers_named_by_the_conversion_are_the_hosts():
    from pack.legacy.samplers import STOCK_SAMPLERS

    assert {name for name, _ in STOCK_SAMPLERS.values()} <= set(comfy.samplers.KSampler.SAMPLERS)
