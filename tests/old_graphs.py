"""Graphs as the older wrapper's users saved them, built from the table of its signatures; none of its own files."""

from __future__ import annotations

from typing import Any

from pack.legacy.native import slots, stored_schema
from pack.legacy.signatures import ERAS, OTHERS_LOADER, REMOVED, Era, eras

CONTROL = "fixed"
PIPED = -2  # the last era of the sampler that takes a pipeline
WIDGETS = {
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "DualCLIPLoader": ("clip_name1", "clip_name2", "type"),
}
TYPES = {  # of the wrapper's outputs, where the name does not say it
    "images": "IMAGE",
    "video_flow_images": "IMAGE",
    "samples": "LATENT",
    "positive": "CONDITIONING",
    "negative": "CONDITIONING",
    "width": "INT",
    "height": "INT",
}
FOREIGN = {  # outputs and inputs of nodes of the host and of other packs
    "CLIPLoader": (["CLIP:CLIP"], [], ["t5xxl_fp16.safetensors", "sd3"]),
    "DualCLIPLoader": (["CLIP:CLIP"], [], ["clip_l.safetensors", "t5xxl_fp16.safetensors", "sd3"]),
    "LoadImage": (["IMAGE:IMAGE", "MASK:MASK"], [], ["image.png", "image"]),
    "EmptyLatentImage": (["LATENT:LATENT"], [], [720, 480, 1]),
    "VHS_LoadVideo": (["IMAGE:IMAGE", "frame_count:INT"], [], {"video": "video.mp4", "force_rate": 0}),
    "VHS_VideoCombine": (["Filenames:VHS_FILENAMES"], ["images:IMAGE"], {"frame_rate": 8}),
    "SplineEditor": (["mask:MASK", "coord_str:STRING"], [], ["[]"]),
    "GetWarpedNoiseFromVideo": (
        ["noise:LATENT", "visualization:IMAGE"],
        ["images:IMAGE"],
        [16, "nearest", 13, 0.5, "BTCHW", 7, CONTROL],
    ),
    "Reroute": ([":*"], [":*"], []),
    "GetNode": (["*:*"], [], ["name"]),
    "SetNode": (["*:*"], ["*:*"], ["name"]),
    "GetWarpedNoiseFromVideoCogVideoX": (
        ["noise:LATENT", "visualization:IMAGE", "optical_flows:IMAGE"],
        ["images:IMAGE"],
        ["blend", 49, 0.3, 7, CONTROL, "CPU"],
    ),
    "Any Switch (rgthree)": (["*:*"], ["any_01:*", "any_02:*"], []),
    "LatentUpscale": (["LATENT:LATENT"], ["samples:LATENT"], ["nearest-exact", 720, 480, "disabled"]),
    "PrimitiveNode": (["INT:INT"], [], [48, CONTROL]),
    "PreviewImage": ([], ["images:IMAGE"], []),
}


class OldGraph:
    """A graph to fill node by node; `add` returns the id, links are given as (id, output name)."""

    def __init__(self):
        self.nodes: list[dict[str, Any]] = []
        self.links: list[list] = []
        self.sources: dict[int, dict[str, tuple[int, str]]] = {}
        self.eras: dict[int, Era] = {}

    def add(self, node_type: str, era: int = -1, *, mode: int = 0, title: str = "", **given) -> int:
        """Add a node; keywords are links (tuples) or widget values."""
        id = len(self.nodes) + 1
        node = {"id": id, "type": node_type, "pos": [400 * (id % 5), 500 * (id // 5)], "size": [320, 200]}
        node |= {"flags": {}, "order": id, "mode": mode, "properties": {"Node name for S&R": node_type}}
        if title:
            node["title"] = title
        if node_type in ERAS:
            form = eras(node_type)[era]
            self.eras[id] = form
            names = [name for name in form.inputs if name not in {widget.name for widget in form.widgets}]
            names += [name for name in given if isinstance(given[name], tuple) and name not in names]
            inputs = [{"name": name, "type": name.upper(), "link": None} for name in names]
            outputs = [{"name": name, "type": TYPES.get(name, name.upper()), "links": None} for name in form.outputs]
            if form.outputs[:1] == ("pipe",):
                outputs[0]["name"] = "cogvideo_pipe"
            values = []
            for widget in form.widgets:
                value = given.get(widget.name, widget.default)
                values.append(widget.default if isinstance(value, tuple) else value)
                values += [CONTROL] * (widget.kind == "SEED")
        else:
            outs, ins, values = FOREIGN[node_type]
            outputs = [dict(zip(("name", "type"), text.split(":"), strict=True), links=None) for text in outs]
            inputs = [dict(zip(("name", "type"), text.split(":"), strict=True), link=None) for text in ins]
            values = given.pop("values", values)
        node |= {"inputs": inputs, "outputs": outputs, "widgets_values": values}
        self.nodes.append(node)
        self.sources[id] = {name: value for name, value in given.items() if isinstance(value, tuple)}
        for name, (origin, output) in self.sources[id].items():
            self.connect(origin, output, id, name)
        return id

    def node(self, id: int) -> dict[str, Any]:
        return self.nodes[id - 1]

    def _output(self, id: int, name: str) -> int:
        names = self.eras[id].outputs if id in self.eras else [out["name"] for out in self.node(id)["outputs"]]
        return list(names).index(name)

    def connect(self, origin: int, output: str, target: int, name: str) -> None:
        slot = self._output(origin, output)
        place = [entry["name"] for entry in self.node(target)["inputs"]].index(name)
        kind = self.node(origin)["outputs"][slot]["type"]
        link = [len(self.links) + 1, origin, slot, target, place, kind]
        self.links.append(link)
        made = self.node(origin)["outputs"][slot]
        made["links"] = [*(made["links"] or []), link[0]]
        self.node(target)["inputs"][place]["link"] = link[0]
        if target in self.eras:
            self.node(target)["inputs"][place]["type"] = kind

    def editor(self) -> dict[str, Any]:
        """Return the graph as the editor saved it."""
        return {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [{"title": "All of it", "bounding": [-50, -50, 3000, 3000], "color": "#3f789e"}],
            "config": {},
            "extra": {"ds": {"scale": 1, "offset": [0, 0]}},
            "version": 0.4,
        }

    def prompt(self) -> dict[str, Any]:
        """Return the graph in the API format."""
        made = {}
        for node in self.nodes:
            values = {}
            if node["id"] in self.eras:
                saved = [value for value in node["widgets_values"] if value != CONTROL]
                values = {
                    widget.name: value for widget, value in zip(self.eras[node["id"]].widgets, saved, strict=True)
                }
            elif node["type"] in stored_schema():
                names = [slot.name for slot in slots(stored_schema()[node["type"]]) if slot.widget]
                values = dict(zip(names, node["widgets_values"], strict=False))
            elif node["type"] in WIDGETS:
                values = dict(zip(WIDGETS[node["type"]], node["widgets_values"], strict=True))
            elif isinstance(node["widgets_values"], dict):
                values = dict(node["widgets_values"])
            links = {
                name: [str(origin), self._output(origin, output)]
                for name, (origin, output) in self.sources[node["id"]].items()
            }
            made[str(node["id"])] = {"class_type": node["type"], "inputs": {**values, **links}}
        return made


def whole(node_type: str, era: int) -> OldGraph:
    """Return a graph that makes a video and in which this form of this node has its usual place."""
    graph = OldGraph()
    form = eras(node_type)[era]
    piped = "pipeline" in form.inputs or form.outputs[:1] == ("pipe",) or node_type in REMOVED | {"CogVideoPABConfig"}
    image = ("CogVideoImageEncode", "CogVideoImageEncodeFunInP", "CogVideoImageInterpolationEncode")
    control = node_type in ("CogVideoXFunControlSampler", "CogVideoControlImageEncode")

    def add(kind: str, **given) -> int:
        number = era if kind == node_type else -1
        if kind == "CogVideoSampler" and kind != node_type and piped:
            number = PIPED
        if kind in ("CogVideoDecode", "ToraEncodeTrajectory", "ToraEncodeOpticalFlow") and kind != node_type and piped:
            number = 1 if kind == "CogVideoDecode" else 0
        if kind == "DownloadAndLoadCogVideoModel" and kind != node_type and piped:
            number = 3 if node_type == "CogVideoPABConfig" or node_type in REMOVED else 4
        return graph.add(kind, number, **given)

    def has(id: int, name: str) -> bool:
        return name in graph.eras[id].inputs

    # --- what is loaded
    extras = {}
    if node_type in ("CogVideoLoraSelect", "CogVideoLoraSelectComfy"):
        first = graph.add(node_type, lora="first.safetensors", strength=0.5, title="Style")
        extras["lora"] = (
            graph.add(node_type, lora="orbit_left.safetensors", prev_lora=(first, "lora"), fuse_lora=True),
            "lora",
        )
    if node_type == "CogVideoTransformerEdit":
        extras["block_edit"] = (add(node_type, remove_blocks="15, 25"), "block_list")
    if node_type == "CogVideoXTorchCompileSettings":
        extras["compile_args"] = (add(node_type), "torch_compile_args")
    if node_type == "CogVideoPABConfig":
        extras["pab_config"] = (add(node_type), "pab_config")
    if node_type == OTHERS_LOADER:
        extras |= {"unet_name": "CogVideoX_5b_GGUF_Q4_0.safetensors", "vae_name": "cogvideox_vae.safetensors"}
    single = node_type in ("CogVideoXModelLoader", "CogVideoXVAELoader")
    kind = (
        node_type
        if node_type.startswith(("DownloadAndLoadCogVideo", OTHERS_LOADER)) and "Net" not in node_type
        else "DownloadAndLoadCogVideoModel"
    )
    if single:
        loader = add("CogVideoXModelLoader", model="cogvideox.safetensors", attention_mode="sageattn")
        vae = (add("CogVideoXVAELoader", model_name="cogvideox_vae.safetensors"), "vae")
    else:
        pictured = node_type in (*image, "CogVideoXFunResizeToClosestBucket")
        name = "THUDM/CogVideoX-5b-I2V" if pictured else "THUDM/CogVideoX-5b"
        if node_type in ("CogVideoXFunSampler", "CogVideoXFunVid2VidSampler", "CogVideoImageEncodeFunInP"):
            name = "kijai/CogVideoX-Fun-5b"
        if control:
            name = "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose"
        if kind == "DownloadAndLoadCogVideoGGUFModel":
            name = "CogVideoX_5b_GGUF_Q4_0.safetensors"
        loader = add(
            kind,
            **({"model": name} if "model" in eras(kind)[era if kind == node_type else -1].inputs else {}),
            **extras,
        )
        vae = (loader, "vae") if "vae" in graph.eras[loader].outputs else None
    pipe = (loader, graph.eras[loader].outputs[0])
    if (node_type, era) == ("CogVideoSampler", 4):  # width came first, after this input was gone
        inputs = graph.node(loader)["inputs"]
        inputs[:] = [entry for entry in inputs if entry["name"] != "pab_config"]

    def engine(id_inputs: tuple[str, ...]) -> dict[str, tuple[int, str]]:
        """Return the links of a node to model or pipeline, and to the VAE."""
        given = {}
        for name in ("pipeline", "model"):
            if name in id_inputs:
                given[name] = pipe
        if "vae" in id_inputs and vae:
            given["vae"] = vae
        return given

    # --- text
    if node_type == "CogVideoEncodePrompt":
        text = add(node_type, prompt="a fox", negative_prompt="blurry", pipeline=pipe)
        both = (
            {"embeds": (text, "embeds")}
            if "embeds" in form.outputs
            else {n: (text, n) for n in ("positive", "negative")}
        )
    elif node_type == "CogVideoDualTextEncode_311":
        clip = graph.add("DualCLIPLoader")
        texts = [add(node_type, clip=(clip, "CLIP"), t5xxl=text, clip_l="") for text in ("a fox", "blurry")]
        both = dict(zip(("positive", "negative"), [(text, "conditioning") for text in texts], strict=True))
    else:
        clip = graph.add("CLIPLoader")
        first = add("CogVideoTextEncode", clip=(clip, "CLIP"), prompt="a (red:1.2) fox", title="What it shows")
        second_clip = (first, "clip") if "clip" in graph.eras[first].outputs else (clip, "CLIP")
        second = add("CogVideoTextEncode", clip=second_clip, prompt="blurry")
        both = {"positive": (first, "conditioning"), "negative": (second, "conditioning")}
    if node_type == "CogVideoTextEncodeCombine":
        mixed = add(
            node_type, conditioning_1=both["positive"], conditioning_2=both["negative"], weighted_average_ratio=0.3
        )
        both["positive"] = (mixed, "conditioning")

    # --- images, control, options
    given: dict[str, Any] = dict(both)
    sampler_type = (
        node_type if node_type.endswith("Sampler") else "CogVideoXFunControlSampler" if control else "CogVideoSampler"
    )
    sampler_era = era if sampler_type == node_type else -1
    if sampler_type == "CogVideoSampler" and node_type != sampler_type and piped:
        sampler_era = 0 if "embeds" in both else PIPED
    takes = eras(sampler_type)[sampler_era].inputs
    picture = video = None
    if node_type in image or "start_img" in takes or node_type == "CogVideoXFunResizeToClosestBucket":
        picture = (graph.add("LoadImage"), "IMAGE")
    if (
        node_type
        in (
            "CogVideoXFunVid2VidSampler",
            "CogVideoControlNet",
            "DownloadAndLoadCogVideoControlNet",
            "ToraEncodeOpticalFlow",
        )
        or control
    ):
        video = (graph.add("VHS_LoadVideo"), "IMAGE")
    if node_type == "CogVideoXFunResizeToClosestBucket":
        picture = (add(node_type, images=picture), "images")
    if node_type in image or node_type == "CogVideoXFunResizeToClosestBucket":
        encoder = node_type if node_type in image else "CogVideoImageEncode"
        inputs = form.inputs if node_type in image else eras(encoder)[-1].inputs
        links = engine(inputs)
        links |= {name: picture for name in ("start_image", "image", "end_image") if name in inputs}
        given["image_cond_latents"] = (add(encoder, **links), "samples")
    if "start_img" in takes:
        given["start_img"] = picture
    for name in ("validation_video", "control_video"):
        if name in takes:
            given[name] = video
    if control and "control_latents" in takes:
        encoded = add("CogVideoControlImageEncode", pipeline=pipe, control_video=video)
        given["control_latents"] = (encoded, "control_latents")
    if node_type in ("CogVideoControlNet", "DownloadAndLoadCogVideoControlNet"):
        net = add("DownloadAndLoadCogVideoControlNet", model="TheDenk/cogvideox-5b-controlnet-canny-v1")
        applied = add("CogVideoControlNet", controlnet=(net, "controlnet"), images=video, control_end_percent=0.5)
        given["controlnet"] = (applied, "cogvideo_controlnet")
    if node_type in ("ToraEncodeTrajectory", "ToraEncodeOpticalFlow", "DownloadAndLoadToraModel"):
        tora = add("DownloadAndLoadToraModel", model="kijai/CogVideoX-5b-Tora")
        encoder = node_type if node_type.startswith("ToraEncode") else "ToraEncodeTrajectory"
        inputs = form.inputs if encoder == node_type else eras(encoder)[-1].inputs
        links = {**engine(inputs), "tora_model": (tora, "tora_model")}
        if "optical_flow" in inputs:
            links["optical_flow"] = video
        else:
            links["coordinates"] = (graph.add("SplineEditor"), "coord_str")
        given["tora_trajectory"] = (add(encoder, **links), "tora_trajectory")
    for kind, name, output in (
        ("CogVideoContextOptions", "context_options", "context_options"),
        ("CogVideoXFasterCache", "fastercache", "fastercache"),
        ("CogVideoXTeaCache", "teacache_args", "teacache_args"),
        ("CogVideoEnhanceAVideo", "feta_args", "feta_args"),
    ):
        if node_type == kind:
            values = {"context_schedule": "uniform_looped"} if name == "context_options" else {}
            given[name] = (add(kind, **values), output)
    if "width" not in takes and "samples" in takes and "image_cond_latents" not in given and not control:
        given["samples"] = (graph.add("EmptyLatentImage", values=[640, 384, 1]), "LATENT")

    # --- the run
    given |= engine(takes)
    given = {name: value for name, value in given.items() if name in takes}
    sampler = graph.add(sampler_type, sampler_era, seed=11, steps=20, cfg=5.0, title="The sampler", **given)
    if sampler_type == "CogVideoXFunVid2VidSampler" and "samples" not in graph.eras[sampler].outputs:
        sampler = graph.add("CogVideoSampler", PIPED, steps=20, seed=11, pipeline=pipe, **both)
    decode_era = era if node_type == "CogVideoDecode" else 1 if vae is None else 2
    takes = eras("CogVideoDecode")[decode_era].inputs
    decoder = graph.add("CogVideoDecode", decode_era, samples=(sampler, "samples"), **engine(takes))
    if node_type == "CogVideoLatentPreview":
        graph.add("PreviewImage", images=(add(node_type, samples=(sampler, "samples")), "images"))
    graph.add("VHS_VideoCombine", images=(decoder, "images"))
    return graph


CASES = [(node_type, era) for node_type in ERAS for era in range(len(ERAS[node_type]))]


def problems(graph: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return what is wrong with a graph of the editor: broken links, old nodes, widgets out of range."""
    found = []
    nodes = {node["id"]: node for node in graph["nodes"]}
    links = {link[0]: link for link in graph["links"]}
    if len(nodes) != len(graph["nodes"]) or len(links) != len(graph["links"]):
        found.append("numbers are given twice")
    if nodes and max(nodes) > graph["last_node_id"] or links and max(links) > graph["last_link_id"]:
        found.append("the last numbers are too low")
    for id, origin, slot, target, place, kind in graph["links"]:
        made, taken = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        if id not in made["links"] or taken["link"] != id:
            found.append(f"link {id} is not known at both ends")
        if len({made["type"], taken["type"], kind} - {"*"}) > 1:
            found.append(f"{nodes[origin]['type']} gives {made['type']} to {nodes[target]['type']} {taken['name']}")
    for node in graph["nodes"]:
        ends = [entry["link"] for entry in node["inputs"]] + [
            id for out in node["outputs"] for id in out["links"] or []
        ]
        if {id for id in ends if id is not None} - links.keys():
            found.append(f"{node['type']} keeps a link that is gone")
        if node["type"] in ERAS:
            found.append(f"{node['type']} is still there")
        if node["type"] in schema and "cnr_id" in node["properties"]:  # made by the conversion
            found += widget_problems(node, schema[node["type"]])
    return found


def widget_problems(node: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """Return what is wrong with the widgets and sockets of a node."""
    found, values = [], list(node["widgets_values"])
    entries = {entry["name"]: entry for entry in node["inputs"]}
    for slot in slots(info):
        if not slot.widget:
            if not slot.optional and entries.get(slot.name, {}).get("link") is None:
                found.append(f"{node['type']} lacks {slot.name}")
            continue
        if not values:
            return [*found, f"{node['type']} has too few values"]
        value = values.pop(0)
        if slot.control:
            values.pop(0)
        if entries.get(slot.name, {}).get("link") is not None:
            continue
        if slot.kind == "COMBO" and slot.choices and value not in slot.choices:
            found.append(f"{node['type']} {slot.name} is {value}")
        if slot.kind in ("INT", "FLOAT") and (isinstance(value, str | bool) or slot.clamp(value) != value):
            found.append(f"{node['type']} {slot.name} is {value}")
    return [*found, f"{node['type']} has too many values"] if values else found
