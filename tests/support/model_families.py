"""Small models of every family of transformers, timm and torchvision, with random weights and without a download."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LARGEST = 6_000_000  # parameters of a small model

SMALL = {  # field of a config -> its value in a small model
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 16, "embedding_size": 32,
    "encoder_hidden_size": 32, "decoder_hidden_size": 32, "projection_dim": 32, "output_hidden_size": 32,
    "pooler_output_size": 32, "out_hidden_size": 32, "attention_hidden_size": 32, "emb_dim": 32,
    "d_embed": 32, "text_embed_dim": 32, "vision_embed_dim": 32, "num_hidden_layers": 2, "num_layers": 2,
    "n_layer": 2, "n_layers": 2, "encoder_layers": 1, "decoder_layers": 1, "num_decoder_layers": 1, "depth": 2,
    "encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "num_encoder_layers": 1,
    "num_attention_heads": 2, "num_heads": 2, "n_head": 2, "n_heads": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "decoder_num_attention_heads": 2, "encoder_num_attention_heads": 2,
    "head_dim": 16, "d_kv": 16, "d_head": 16, "intermediate_size": 40, "ffn_dim": 40, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40, "d_ff": 40, "n_inner": 40, "d_inner": 40, "hidden_dim": 40, "dim_feedforward": 40,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_head_dim": 16, "v_head_dim": 16, "rotary_dim": 8, "max_position_embeddings": 64, "n_positions": 64,
    "max_source_positions": 32, "max_target_positions": 64, "max_seq_len": 64, "image_size": 32, "img_size": 32,
    "patch_size": 8, "num_mel_bins": 16, "conv_depthwise_kernel_size": 5, "window_size": 4, "num_frames": 4,
    "tubelet_size": 2, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8,
    "state_size": 8, "chunk_size": 8, "time_step_rank": 4, "n_mels": 16, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "mask_feature_length": 4, "mask_time_length": 4, "num_queries": 5,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "block_size": 8, "sliding_window": 8, "attention_window": 8, "num_filters": 4, "codebook_size": 16,
    "num_query_tokens": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64, "ffn_hidden_size": 40,
    "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4, "bottleneck_size": 16, "width": 16,
    "intra_bottleneck_size": 16, "mlp_dim": 40, "lru_width": 32, "attention_chunk_size": 16, "num_patches": 16,
    "max_2d_position_embeddings": 64, "coordinate_size": 4, "shape_size": 4, "relative_attention_num_buckets": 8,
    "input_feat_per_channel": 16, "conv_channels": 16, "context_length": 32, "prediction_length": 8,
    "patch_length": 8, "patch_stride": 8, "feature_projection_input_dim": 16, "stem_channels": 8, "num_blocks": 2,
    "embedding_dim": 32, "projector_hidden_size": 32, "num_position_embeddings": 16, "adapter_stride": 2,
}  # fmt: skip
LISTS = {  # fields with a number for each stage -> the number of stage k; the length stays
    "depths": lambda k: 1, "num_blocks": lambda k: 1, "depth": lambda k: 1, "num_heads": lambda k: 2**k,
    "num_attention_heads": lambda k: 2**k, "hidden_sizes": lambda k: 16 * 2**k, "embed_dim": lambda k: 16 * 2**k,
    "embed_dims": lambda k: 16 * 2**k, "conv_dim": lambda k: 16, "tdnn_dim": lambda k: 16, "dims": lambda k: 16 * 2**k,
    "widths": lambda k: 16 * 2**k, "neck_hidden_sizes": lambda k: 16, "blocks_per_stage": lambda k: 1,
}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {  # family -> fields of its own
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attention_head_size": 16,
                 "attn_layers": ["local", "lsh"], "num_buckets": 2},
    "xlnet": {"d_head": 16}, "led": {"attention_window": 8}, "longformer": {"attention_window": 8},
    "funnel": {"block_sizes": [1, 1], "d_model": 32}, "perceiver": {"num_latents": 8, "d_latents": 32},
    "canine": {"max_position_embeddings": 64}, "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "deepseek_v3": {"head_dim": 8}, "codegen": {"n_head": 4, "rotary_dim": 4},
    "squeezebert": {"embedding_size": 32}, "mobilebert": {"true_hidden_size": 16},
    "efficientnet": {"image_size": 64}, "levit": {"image_size": 64, "key_dim": [8, 8, 8]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]}, "deberta": {"pooler_hidden_size": 32},
    "deberta-v2": {"pooler_hidden_size": 32}, "transfo-xl": {"cutoffs": [8]}, "openai-gpt": {"n_positions": 64},
    "audio-spectrogram-transformer": {"max_length": 32}, "rwkv": {"context_length": 32},
}  # fmt: skip

TIMM = (
    "beit_base_patch16_224", "botnet26t_256", "resnet32ts", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny",
    "convmixer_768_32", "convnext_atto", "convnextv2_atto", "crossvit_tiny_240", "cspresnet50", "cspdarknet53",
    "darknet17", "davit_tiny", "deit_tiny_patch16_224", "deit3_small_patch16_224", "densenet121", "dla46_c", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "efficientnet_b0", "efficientnet_lite0",
    "tf_efficientnet_b0", "tf_efficientnetv2_b0", "mixnet_s", "mnasnet_small", "fbnetc_100", "mobilenetv2_035",
    "spnasnet_100", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "ghostnet_050", "ghostnetv2_100", "hardcorenas_a", "hgnet_tiny",
    "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "levit_128s", "levit_conv_128s", "mambaout_femto",
    "maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224", "coatnext_nano_rw_224", "poolformer_s12", "caformer_s18",
    "convformer_s18", "mixer_s32_224", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224", "mobilenetv3_small_050",
    "tf_mobilenetv3_small_075", "lcnet_035", "mobilenetv4_conv_small", "mobilevit_xxs", "mobilevitv2_050",
    "mobileone_s0", "mvitv2_tiny", "nasnetalarge", "nest_tiny", "nextvit_small", "nfnet_l0", "dm_nfnet_f0",
    "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "regnetx_002", "regnety_002", "repghostnet_050",
    "repvit_m0_9", "repvgg_a0", "res2net50_14w_8s", "resnest14d", "resnet10t", "resnet18", "resnetv2_18",
    "resnetv2_50", "resnetv2_50x1_bit", "rexnet_100", "selecsls42b", "seresnet18", "sequencer2d_s", "skresnet18",
    "shvit_s1", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small", "vgg11",
    "visformer_tiny", "vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_base_patch16_clip_224",
    "vit_base_patch16_siglip_224", "vit_tiny_r_s16_p8_224", "vit_relpos_small_patch16_224", "samvit_base_patch16",
    "naflexvit_base_patch16_gap", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim", "legacy_xception",
    "xception41", "xcit_nano_12_p16_224",
)  # fmt: skip
SMALLER_TIMM: tuple[dict[str, Any], ...] = (  # arguments that are tried in turn; the first that a family takes counts
    {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2},
    {"img_size": 64, "depths": (1, 1, 1, 1), "embed_dim": 24},
    {"img_size": 64, "depths": (1, 1, 1, 1)},
    {"img_size": 64, "num_blocks": 2},
    {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
    {"depths": (1, 1, 1, 1)},
    {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    {"img_size": 64},
    {},
)
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "maxvit_t", "mc3_18", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "mvit_v1_b", "r2plus1d_18", "r3d_18", "raft_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnext50_32x4d", "s3d", "shufflenet_v2_x0_5", "squeezenet1_1",
    "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "swin_t", "swin_v2_t", "swin3d_t",
    "vgg11", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        library: transformers, timm or torchvision.
        name: Type of the config (transformers), or name of the model.
    """

    library: str
    name: str

    def build(self) -> nn.Module:
        """Return a small model of the family, in eval mode; ValueError if it cannot be built small."""
        builders = {"transformers": transformers_model, "timm": timm_model, "torchvision": torchvision_model}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return builders[self.library](self.name).eval()


def families() -> Iterator[Family]:
    """Yield every family."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    yield from (Family("transformers", name) for name in MODEL_MAPPING_NAMES)
    yield from (Family("timm", name) for name in TIMM)
    yield from (Family("torchvision", name) for name in TORCHVISION)


def small_config(config: Any, own: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of a default config that differ in a small model, those of configs inside of it too.

    Args:
        config: The default config.
        own: Fields with another value than `SMALL` says.
    """
    small: dict[str, Any] = {}
    for name, value in vars(config).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            small[name] = small_config(value)
        elif own and name in own:
            small[name] = own[name]
        elif isinstance(value, (list, tuple)) and value and name in LISTS and isinstance(value[0], int):
            small[name] = [LISTS[name](stage) for stage in range(len(value))]
        elif isinstance(value, int) and not isinstance(value, bool):
            small |= _small_number(config, name, value)
    return small


def _small_number(config: Any, name: str, value: int) -> dict[str, int]:
    if name == "vocab_size":
        return {name: 64}
    if name == "num_key_value_heads":  # as many as there are query heads, or fewer, as in the default
        return {name: 2 if value == getattr(config, "num_attention_heads", value) else 1}
    if name.endswith(("token_id", "token_index")):
        return {name: 60} if value >= 64 else {}
    return {name: min(value, SMALL[name])} if name in SMALL else {}


def transformers_model(name: str) -> nn.Module:
    """Build a small model of a type of config."""
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[name]
    own = SPECIAL.get(name, {})
    config = config_class(**{**small_config(config_class(), own), **own})
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModel.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{name} has {size:,} parameters")
    model: nn.Module = AutoModel.from_config(config)
    return model


def timm_model(name: str) -> nn.Module:
    """Build a model of timm with the smallest arguments that it takes."""
    import timm

    error: Exception | None = None
    for arguments in SMALLER_TIMM:
        try:
            return timm.create_model(name, pretrained=False, num_classes=5, **arguments)
        except Exception as failed:  # whatever a family says to arguments that it does not know
            error = failed
    raise ValueError(f"{name}: {error}")


def torchvision_model(name: str) -> nn.Module:
    """Build a model of torchvision."""
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if any(part in name for part in ("deeplab", "lraspp", "fcn", "ssdlite", "fasterrcnn")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model
