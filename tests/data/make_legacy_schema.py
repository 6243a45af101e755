"""Write legacy/schema.json: what the conversion of old graphs needs to know of the nodes it makes.

Run in the environment of the host tests: `COMFYUI_PATH=... python tests/data/make_legacy_schema.py`.
"""

import asyncio
import json
import os
import sys
import tempfile
import types
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = {
    "CogVideoXAttention",
    "CogVideoXControlToVideo",
    "CogVideoXDynamicCFG",
    "CogVideoXEnhanceVideo",
    "CogVideoXImageToVideo",
    "CogVideoXLoadControlNet",
    "CogVideoXLoadLoRA",
    "CogVideoXLoadModel",
    "CogVideoXLoadTextEncoder",
    "CogVideoXLoadTora",
    "CogVideoXLoadVAE",
    "CogVideoXResolution",
    "CogVideoXSampler",
    "CogVideoXSamplerSelect",
    "CogVideoXScheduler",
    "CogVideoXStepCache",
    "CogVideoXTextEncode",
    "CogVideoXTrajectory",
    "CogVideoXVAEDecode",
    "CogVideoXVAEEncode",
    "CogVideoXWarpedNoise",
    "EmptyCogVideoXLatentVideo",
}
STOCK = (
    "CFGGuider",
    "CLIPLoader",
    "ConditioningAverage",
    "ConditioningConcat",
    "ConditioningZeroOut",
    "ContextWindowsManual",
    "ControlNetApplyAdvanced",
    "GetImageSize",
    "ImageBatch",
    "ImageFromBatch",
    "ImageScale",
    "KSamplerSelect",
    "LoraLoaderModelOnly",
    "OpticalFlowLoader",
    "RepeatImageBatch",
    "SamplerCustom",
    "SamplerCustomAdvanced",
    "TorchCompileModel",
)
EXTRAS = (
    "nodes_context_windows",
    "nodes_custom_sampler",
    "nodes_images",
    "nodes_torch_compile",
    "nodes_void",
)


def live_schema() -> dict:
    """Return the schema of every native node a conversion may make, from the running host."""
    import importlib

    from pack.legacy import reduced
    from pack.nodes import CogVideoXExtension
    from pack.nodes.host.schema import node_info

    import nodes as host_nodes

    classes = dict(host_nodes.NODE_CLASS_MAPPINGS)
    for name in EXTRAS:
        module = importlib.import_module(f"comfy_extras.{name}")
        classes |= getattr(module, "NODE_CLASS_MAPPINGS", {})
        if hasattr(module, "comfy_entrypoint"):
            made = module.comfy_entrypoint()
            extension = asyncio.run(made) if asyncio.iscoroutine(made) else made
            classes |= {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}
    ours = {node.GET_SCHEMA().node_id: node for node in asyncio.run(CogVideoXExtension().get_node_list())}
    wanted = {name: classes[name] for name in STOCK} | {name: ours[name] for name in OURS & ours.keys()}
    return {name: reduced(node_info(node), files=False) for name, node in sorted(wanted.items())}


if __name__ == "__main__":
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    base = tempfile.TemporaryDirectory(prefix="cogvideox-schema-", ignore_cleanup_errors=True)
    sys.argv = ["x", "--cpu", "--base-directory", base.name]
    import comfy.options

    comfy.options.enable_args_parsing()
    pack = sys.modules["pack"] = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    schema = live_schema()
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in schema.items())
    (ROOT / "legacy" / "schema.json").write_text("{\n" + lines + "\n}\n", "utf-8")
