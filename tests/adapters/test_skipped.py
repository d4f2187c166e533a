"""What presets leave out: said once in a warning, listed by the adapter and by the command; the rest is adapted."""

import warnings
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import metalora
from metalora import AdapterConfig, attach
from metalora.adapters.skipped import OUTPUT_HEAD, skipped_weights
from support.command import metalora_command
from support.small_transformers import small_model

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)


def qwen3_moe():
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_key_value_heads=1, head_dim=8, moe_intermediate_size=8, num_experts=4)
    )


def vit():
    return torchvision.models.VisionTransformer(32, 16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=8)


def odd_layers():
    """Layers of every kind, and one of every kind that is like one that can be adapted, and is not."""
    return nn.Sequential(
        nn.Linear(4, 4), nn.LSTM(4, 4), nn.Bilinear(4, 4, 4), nn.TransformerEncoderLayer(4, 2, 8), nn.Embedding(9, 4),
        nn.LayerNorm((4, 4)), nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 3), nn.Conv3d(2, 2, 2), nn.Linear(4, 2),
    )  # fmt: skip


def positions():
    """Parameters of several axes that multiply no input."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for name in ("pos_embed", "relative_position_bias_table", "cls_token", "logit_scale"):
        model[0].register_module(name, nn.Module())
        model[0].get_submodule(name).register_parameter(name, nn.Parameter(torch.zeros(2, 3, 4)))
    return model


ATTENTION = "nn.MultiheadAttention reads this weight itself"
EXPERTS = "experts that are fused into one parameter"


@dataclass(frozen=True)
class Skips:
    """A model, a preset, and what it leaves out: the start of a reason -> the paths or their number."""

    model: object
    expected: dict
    targets: str = "all"
    exclude: tuple[str, ...] = ()


CASES = {
    "attention of torch": Skips(vit, {ATTENTION: 6}),  # in_proj_weight and out_proj of three layers
    "attention is no convolution": Skips(vit, {}, "conv"),
    "fused experts": Skips(qwen3_moe, {EXPERTS: 4, "Qwen3MoeTopKRouter holds this matrix itself": 2}),
    "fused experts, routers excluded": Skips(qwen3_moe, {EXPERTS: 4}, exclude=("mlp.gate",)),
    "fused experts, all excluded": Skips(qwen3_moe, {}, exclude=("mlp.*",)),
    "the user's own targets": Skips(qwen3_moe, {}, "q_proj"),
    "depthwise": Skips(lambda: timm.create_model("efficientnet_lite0"), {}),
    "weight norm": Skips(lambda: small_model("wav2vec2"), {}),
    "odd linear layers": Skips(
        odd_layers,
        {
            "LSTM holds": ["1.weight_ih_l0", "1.weight_hh_l0"],
            "Bilinear holds": ["2.weight"],
            ATTENTION: ["3.self_attn.in_proj_weight", "3.self_attn.out_proj"],
            "nn.TransformerEncoderLayer reads this weight itself in eval mode": ["3.linear1", "3.linear2"],
        },
        "linear",
    ),
    "odd convolutions": Skips(odd_layers, {}, "conv"),
    "MLP-Mixer": Skips(lambda: timm.create_model("mixer_s32_224"), {}),
    "ResNet": Skips(lambda: timm.create_model("resnet18"), {}),
    "ViT of timm": Skips(lambda: timm.create_model("vit_tiny_patch16_224"), {}),
    "Llama": Skips(lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)), {}),
    "BERT": Skips(lambda: BertForSequenceClassification(BertConfig(**SIZES)), {}),
    "positions": Skips(positions, {}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_preset_warns_once_and_adapts_the_rest(case):
    model = case.model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = attach(model, AdapterConfig("lora", 1, targets=case.targets, exclude=case.exclude))
    lines = [str(warning.message) for warning in caught if "leave out weights" in str(warning.message)]
    assert len(lines) == bool(case.expected) and len(adapter.targets) > 0
    assert all(warning.filename == __file__ for warning in caught if str(warning.message) in lines)
    skipped = [weight for weight in adapter.skipped if weight.reason != OUTPUT_HEAD]
    for start, expected in case.expected.items():
        paths = [weight.path for weight in skipped if weight.reason.startswith(start)]
        assert paths == expected if isinstance(expected, list) else len(paths) == expected, start
        assert f"{len(paths)} weight" in lines[0] and start in lines[0] and paths[0] in lines[0]
        assert start in repr(adapter) and start in adapter._repr_html_()
        skipped = [weight for weight in skipped if not weight.reason.startswith(start)]
    assert not skipped and not {weight.path for weight in adapter.skipped} & {*adapter.targets}


def test_the_output_head_is_listed_without_a_warning_unless_it_is_excluded():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    listed = [(weight.path, weight.reason) for weight in skipped_weights(net, "all")]
    assert listed == [("1", OUTPUT_HEAD)] and skipped_weights(net, "all", exclude=("1",)) == ()
    assert skipped_weights(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(4, 2)), "conv") == ()


def test_a_quantised_layer_of_another_library_is_reported():
    class QuantLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int8))

    net = nn.Sequential(nn.Linear(4, 4), QuantLinear(), nn.Linear(4, 2))
    assert ("1", "quantised weights are not adapted") in [(w.path, w.reason) for w in skipped_weights(net, "linear")]


def test_a_warning_that_is_an_error_leaves_the_model_as_it_was():
    model = odd_layers()
    modules = [*model.modules()]
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="leave out weights of Sequential"):
        warnings.simplefilter("error")
        attach(model, AdapterConfig("lora", 1, targets="linear"))
    assert modules == [*model.modules()] and metalora.adapter_of(model) is None


@pytest.mark.parametrize("verb", ("plan", "inspect"))
def test_the_command_lists_what_a_preset_skips(verb):
    code, out, _ = metalora_command(verb, "--model", "timm:resnetv2_50", "--targets", "conv")  # its head is one
    assert code == 0 and f"skipped 1 weight because {OUTPUT_HEAD}: head.fc" in " ".join(out.split())
    code, out, _ = metalora_command(verb, "--model", "timm:resnetv2_50", "--targets", "conv3")
    assert code == 0 and "skipped" not in out
