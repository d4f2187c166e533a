"""The size of an attention head: that of the attention itself, also where every stage has another number of heads."""

import pytest
import torchvision
from peft import get_peft_model
from torch import nn
from transformers import ClapConfig, ClapModel, T5Config, T5Model

from metalora import AdapterConfig, attach, find_targets
from metalora.peft import LoTRConfig, adapter_of
from support.small_transformers import TEXT, small_model

UNEQUAL = dict(num_heads=[1, 4])  # heads of 16 in the first stage, which is 16 wide, and of 8 in the second


def clap():
    audio = dict(patch_embeds_hidden_size=16, hidden_size=32, depths=[1, 1], num_attention_heads=[1, 4], window_size=4,
                 spec_size=32, num_mel_bins=8, patch_size=4, patch_stride=[4, 4])  # fmt: skip
    return ClapModel(ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=8)).audio_model


STAGED = {
    "Swin": lambda: small_model("swin", **UNEQUAL),
    "Swin 2": lambda: small_model("swinv2", **UNEQUAL),
    "Swin of torchvision": lambda: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [1, 4], [4, 4]),
    "CLAP": clap,
}


@pytest.mark.parametrize("make", STAGED.values(), ids=STAGED)
def test_every_stage_has_heads_of_its_own_size(make):
    targets = [target for target in find_targets(make(), "linear") if target.heads]
    assert {target.heads for target in targets} == {"in", "out"}
    for target in targets:
        assert target.head_dim == {16: 16, 32: 8}[target.sizes["in"]], target.path


def test_the_size_of_t5_is_its_own_setting():
    config = T5Config(vocab_size=60, d_model=16, num_heads=2, num_layers=1, d_ff=32, d_kv=4)
    assert {target.head_dim for target in find_targets(T5Model(config), "q,k,v,o")} == {4}


@pytest.mark.parametrize("family, size", [("llama", 8), ("falcon", 8), ("gpt2", 8), ("bert", 8), ("vit", 8)])
def test_grouped_and_fused_heads_have_the_size_of_the_attention(family, size):
    targets = [target for target in find_targets(small_model(family), "linear") if target.heads]
    assert targets and {target.head_dim for target in targets} == {size}


def test_the_bridge_adapts_a_model_of_stages():
    model = get_peft_model(small_model("swin"), LoTRConfig(r=2, target_modules=["k_proj", "v_proj"]))
    assert len(adapter_of(model).targets) == 4


def test_a_size_that_nobody_says_is_asked_for_by_name():
    class Staged(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), dict(num_heads=[1, 2], hidden_size=8))()
            self.layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(8, 8)}) for _ in range(2))

    assert [target.head_dim for target in find_targets(Staged(), "query")] == [None, None]
    with pytest.raises(ValueError, match="target 'layers.0.query': .*set head_dim"):
        attach(Staged(), AdapterConfig("lorta", 2, targets="query"))
    adapter = attach(Staged(), AdapterConfig("lorta", 2, targets="query", head_dim=4))
    assert len(adapter.layers) == 2


def test_every_layer_has_its_own_size_where_the_configuration_refuses_to_say_one():
    model = small_model("gemma4_text", num_kv_shared_layers=0, hidden_size_per_layer_input=0)
    with pytest.raises(RuntimeError, match="per-layer"):
        _ = model.config.head_dim
    sizes = {target.path: target.head_dim for target in find_targets(model, "q_proj")}
    assert sizes == {"layers.0.self_attn.q_proj": 8, "layers.1.self_attn.q_proj": 512}
