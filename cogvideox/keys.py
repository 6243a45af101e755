"""Where each weight of a CogVideoX file lives, as tables: other layouts' names to the diffusers names this pack uses.

Sources (read, not copied): sat/dit_video_concat.py and sat/vae_modules/cp_enc_dec.py of github.com/THUDM/CogVideo at
e519ece, scripts/convert_cogvideox_to_diffusers.py of diffusers, comfy/ldm/cogvideo/model.py of ComfyUI 0.30.0. A row
names modules, not tensors: whatever follows the module (`weight`, `bias`, a quantisation suffix) travels with it. `{n}`
and `{m}` stand for block numbers; the first row that matches wins.
"""

from __future__ import annotations

import re

from .ggml import QUANTISED

# Source module -> diffusers module; None drops the tensor.
TRANSFORMER_RENAMES = (
    # ComfyUI core
    ("blocks.{n}.q", "transformer_blocks.{n}.attn1.to_q"),
    ("blocks.{n}.k", "transformer_blocks.{n}.attn1.to_k"),
    ("blocks.{n}.v", "transformer_blocks.{n}.attn1.to_v"),
    ("blocks.{n}.attn_out", "transformer_blocks.{n}.attn1.to_out.0"),
    ("blocks.{n}.norm_q", "transformer_blocks.{n}.attn1.norm_q"),
    ("blocks.{n}.norm_k", "transformer_blocks.{n}.attn1.norm_k"),
    ("blocks.{n}.ff_proj", "transformer_blocks.{n}.ff.net.0.proj"),
    ("blocks.{n}.ff_out", "transformer_blocks.{n}.ff.net.2"),
    ("blocks.{n}.norm1", "transformer_blocks.{n}.norm1"),
    ("blocks.{n}.norm2", "transformer_blocks.{n}.norm2"),
    ("time_embedding_linear_1", "time_embedding.linear_1"),
    ("time_embedding_linear_2", "time_embedding.linear_2"),
    ("ofs_embedding_linear_1", "ofs_embedding.linear_1"),
    ("ofs_embedding_linear_2", "ofs_embedding.linear_2"),
    # SAT, the training code of the authors
    ("transformer.layers.{n}.input_layernorm", "transformer_blocks.{n}.norm1.norm"),
    ("transformer.layers.{n}.post_attention_layernorm", "transformer_blocks.{n}.norm2.norm"),
    ("transformer.layers.{n}.attention.dense", "transformer_blocks.{n}.attn1.to_out.0"),
    ("transformer.layers.{n}.mlp.dense_h_to_4h", "transformer_blocks.{n}.ff.net.0.proj"),
    ("transformer.layers.{n}.mlp.dense_4h_to_h", "transformer_blocks.{n}.ff.net.2"),
    ("transformer.final_layernorm", "norm_final"),
    ("mixins.adaln_layer.query_layernorm_list.{n}", "transformer_blocks.{n}.attn1.norm_q"),
    ("mixins.adaln_layer.key_layernorm_list.{n}", "transformer_blocks.{n}.attn1.norm_k"),
    ("mixins.final_layer.norm_final", "norm_out.norm"),
    ("mixins.final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("mixins.final_layer.linear", "proj_out"),
    ("mixins.patch_embed.proj", "patch_embed.proj"),
    ("mixins.patch_embed.text_proj", "patch_embed.text_proj"),
    ("mixins.pos_embed.pos_embedding", "patch_embed.pos_embedding"),
    ("mixins.adaln_layer.fuser_list.{n}", "fuser.{n}"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("ofs_embed.0", "ofs_embedding.linear_1"),
    ("ofs_embed.2", "ofs_embedding.linear_2"),
    # SAT leftovers that the forward pass never reads, and rotary tables that are computed
    ("transformer.word_embeddings", None),
    ("transformer.embed_tokens", None),
    ("transformer.position_embeddings", None),
    ("mixins.pos_embed.freqs_sin", None),
    ("mixins.pos_embed.freqs_cos", None),
    # what ComfyUI's Save Model adds: v-prediction, zero terminal SNR
    ("v_pred", None),
    ("ztsnr", None),
)

SAT_POSITIONS = "mixins.pos_embed.pos_embedding"  # learned in 5B-I2V, a constant sincos table in 2B

_QKV = (
    ("transformer_blocks.{n}.attn1.to_q", (0,)),
    ("transformer_blocks.{n}.attn1.to_k", (1,)),
    ("transformer_blocks.{n}.attn1.to_v", (2,)),
)

# Source module, row chunks in it, and which chunks make up which diffusers module.
TRANSFORMER_SPLITS = (
    ("transformer_blocks.{n}.attn1.to_qkv", 3, _QKV),  # diffusers after fuse_qkv_projections()
    ("transformer.layers.{n}.attention.query_key_value", 3, _QKV),  # SAT
    # SAT: shift, scale, gate of (image attention, image MLP, text attention, text MLP).
    # diffusers: the same three of (image, text), one module before attention and one before the MLP.
    (
        "mixins.adaln_layer.adaLN_modulations.{n}.1",
        12,
        (
            ("transformer_blocks.{n}.norm1.linear", (0, 1, 2, 6, 7, 8)),
            ("transformer_blocks.{n}.norm2.linear", (3, 4, 5, 9, 10, 11)),
        ),
    ),
)

# SAT VAE -> diffusers. `{r}` counts from the other end: SAT numbers up-blocks from the pixels, diffusers from latents.
VAE_RENAMES = (
    ("encoder.down.{n}.block.{m}.nin_shortcut", "encoder.down_blocks.{n}.resnets.{m}.conv_shortcut"),
    ("encoder.down.{n}.block.{m}", "encoder.down_blocks.{n}.resnets.{m}"),
    ("encoder.down.{n}.downsample", "encoder.down_blocks.{n}.downsamplers.0"),
    ("encoder.mid.block_1", "encoder.mid_block.resnets.0"),
    ("encoder.mid.block_2", "encoder.mid_block.resnets.1"),
    ("decoder.mid.block_1", "decoder.mid_block.resnets.0"),
    ("decoder.mid.block_2", "decoder.mid_block.resnets.1"),
    ("decoder.up.{r}.block.{m}.nin_shortcut", "decoder.up_blocks.{r}.resnets.{m}.conv_shortcut"),
    ("decoder.up.{r}.block.{m}", "decoder.up_blocks.{r}.resnets.{m}"),
    ("decoder.up.{r}.upsample", "decoder.up_blocks.{r}.upsamplers.0"),
    ("loss", None),  # the discriminator of training
)

# One key that tells the family; what stands before it is the file's prefix.
TRANSFORMER_MARKER = r"(?P<prefix>(?:.+?\.)??)(?:mixins\.)?patch_embed\.text_proj\.bias"
VAE_MARKER = r"(?P<prefix>(?:.+?\.)??)decoder\.(?:mid_block\.resnets\.0|mid\.block_1)\.norm1\.conv_y\.conv\.weight"
CONTROLNET_MARKER = r"(?P<prefix>(?:.+?\.)??)controlnet_encode_first\.0\.weight"
KNOWN_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.", "first_stage_model.", "vae.")

# Neighbours of a prefix-less model in an all-in-one checkpoint.
OTHER_PARTS = ("first_stage_model.", "conditioner.", "cond_stage_model.", "text_encoders.", "text_encoder.", "vae.")

# A normalised file without these is not a CogVideoX transformer, or not all of one.
TRANSFORMER_MODULES = (
    "patch_embed.proj",
    "time_embedding.linear_1",
    "transformer_blocks.0.norm1.linear",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.ff.net.2",
    "norm_out.linear",
    "proj_out",
)

CONTROLNET_MODULES = (
    "controlnet_encode_second.0",
    "patch_embed.proj",
    "time_embedding.linear_1",
    "transformer_blocks.0.norm1.linear",
    "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.0.ff.net.2",
)

WRAPPERS = ("module", "model", "state_dict")  # SAT (DeepSpeed) and lightning files nest the weights under one of these
GLOBAL_KEYS = ("scaled_fp8",)  # marks a whole file as scaled fp8
# GGML blocks, uint8 [rows, bytes], that take the place of `weight`; the older wrapper's files name Q4_0 and Q8_0 so.
PACKED_SUFFIXES = {f"{kind}_qweight": kind for kind in QUANTISED}
# Entries that belong to a quantised layer beside its weight and bias.
QUANT_SUFFIXES = (
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "pre_quant_scale",
    "comfy_quant",
    "scale_weight",
    "scale_input",
    *PACKED_SUFFIXES,
)
# Of those, the ones that describe the layer as a whole, not its output rows.
WHOLE_LAYER_SUFFIXES = ("weight_scale_2", "input_scale", "pre_quant_scale", "comfy_quant", "scale_input")

# The large matrices of the blocks, which bear few bits; embeddings and norms with their linear layers do not.
LARGE_MATRIX = re.compile(r"transformer_blocks(_copy)?\.\d+\.(attn1\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))\.weight")

# Branches that fine-tunes put beside the transformer, by their modules under diffusers' names.
TORA = r"(fuser|traj_extractor)\."
DIFFUSION_AS_SHADER = r"(transformer_blocks_copy|combine_linears|initial_combine_linear)\."
CONSISID = r"(local_facial_extractor|perceiver_cross_attention)\."

CONTROLNET = "a ControlNet of CogVideoX"
LORA = "a LoRA"
TEXT_ENCODER = "a T5 text encoder"
TRANSFORMER = "a CogVideoX transformer"
VAE = "a CogVideoX VAE"
OTHER_MODEL = "Load it with the stock Load Diffusion Model or Load Checkpoint, or choose a CogVideoX file here"

# What a file that is not the one asked for may be: a pattern of its keys, its name, what mends it. The order counts:
# a LoRA or a ControlNet repeats the names of the model it belongs to.
OTHER_FILES = (
    (
        r"\.lora_(A|B|down|up)\b|\.lora\.(down|up)\.|\.matrix_[AB]\.|\.hada_w|\.lokr_w",
        LORA,
        "Load it with Load CogVideoX LoRA",
    ),
    (r"^(.+\.)?controlnet_encode_first\.", CONTROLNET, "Load it with Load CogVideoX ControlNet"),
    (r"^(.+\.)?(\d+\.flow_gamma_spatial|traj_extractor)\.", "Tora", "Load it with Load CogVideoX Tora"),
    (
        r"^(.+\.)?initial_combine_linear\.",
        "Diffusion as Shader",
        "Load it with Load CogVideoX Diffusion as Shader",
    ),
    (r"^(.+\.)?local_facial_extractor\.", "ConsisID", "Load it with Load CogVideoX ConsisID"),
    (
        r"^control_model\.|^(.+\.)?(controlnet_|input_hint_block\.|zero_convs\.)",
        "a ControlNet of another model",
        "Load it with the stock Load ControlNet Model",
    ),
    (r"^(.+\.)?time_condition_embed\.", "an image model of the CogView family", OTHER_MODEL),
    (
        r"^(.+\.)?(patch_embed\.text_proj|transformer_blocks\.\d+\.norm1\.norm)\.",
        TRANSFORMER,
        "Load it with Load CogVideoX Model",
    ),
    (r"^(.+\.)?double_blocks\.0\.img_attn", "a Flux or HunyuanVideo model", OTHER_MODEL),
    (r"^(.+\.)?blocks\.0\.cross_attn\.", "a Wan or Cosmos model", OTHER_MODEL),
    (r"^(.+\.)?joint_blocks\.0\.", "a Stable Diffusion 3 model", OTHER_MODEL),
    (r"^(.+\.)?(patchify_proj|caption_projection)\.", "an LTX-Video or PixArt model", OTHER_MODEL),
    (r"^(.+\.)?blocks\.0\.attn\.qkv_x\.", "a Mochi model", OTHER_MODEL),
    (
        r"^(.+\.)?(input_blocks\.0\.0|down_blocks\.0\.attentions\.0)\.",
        "a Stable Diffusion (UNet) model",
        OTHER_MODEL,
    ),
    (VAE_MARKER, VAE, "Load it with Load CogVideoX VAE"),
    (
        r"^(.+\.)?(encoder|decoder)\.(conv_in|conv1|mid|mid_block|middle)\.",
        "the VAE of another model",
        "Choose a CogVideoX VAE in Load CogVideoX VAE, or load this one with the stock Load VAE",
    ),
    (
        r"^(.+\.)?encoder\.block\.0\.layer\.0\.SelfAttention\.",
        TEXT_ENCODER,
        "Load it with Load CogVideoX Text Encoder",
    ),
    (
        r"^(.+\.)?(text_model\.encoder\.layers|model\.layers|transformer\.resblocks)\.0\.",
        "the text encoder of another model",
        "Choose a CogVideoX file here",
    ),
    (r"^(.+\.)?(transformer_blocks|single_transformer_blocks|blocks)\.0\.", "another diffusion model", OTHER_MODEL),
)

# Layers that research models add to a transformer, which runs without them: how their keys begin, whose they are. The
# order counts: ConsisID has a part that TrajectoryCrafter lacks.
ADD_ONS = (
    (r"^(local_facial_extractor|local_face)", "ConsisID"),
    (r"^(perceiver_cross_attention|ref_patch_embed)", "TrajectoryCrafter"),
    (r"^(fuser|traj_extractor|fuser_list)\b", "Tora"),
    (r"^(transformer_blocks_copy|combine_linears|initial_combine_linear)", "Diffusion as Shader"),
)
IN_TRAINING = r"\.(lora_(A|B)|matrix_[AB])\b|\.original\."  # keys of a LoRA that was not saved apart
