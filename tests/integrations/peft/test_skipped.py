"""PEFT's "all-linear": what cannot be adapted is left out, said once and listed; the user's own names are refused."""

import warnings

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import BertConfig, BertModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

import metalora.peft as mp

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)


class AttentionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"attention": attention(), "fc": nn.Linear(4, 4)}) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer["fc"](layer["attention"](x, x, x)[0])
        return x


def attention():
    return nn.MultiheadAttention(4, 2, batch_first=True)


def qwen3_moe():
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_key_value_heads=1, head_dim=8, moe_intermediate_size=8, num_experts=4)
    )


CASES = {
    "attention of torch": (AttentionNet, {}, ["in_proj_weight", "out_proj"] * 2, 2),
    "attention of one layer": (AttentionNet, {"exclude_modules": ["0.attention"]}, ["in_proj_weight", "out_proj"], 2),
    "attention excluded by an expression": (AttentionNet, {"exclude_modules": ".*attention.*"}, [], 2),
    "fused experts and routers": (qwen3_moe, {}, ["gate_up_proj", "down_proj", "weight"] * 2, 8),
    "BERT": (lambda: BertModel(BertConfig(**SIZES)), {}, [], 13),
}


@pytest.mark.parametrize("make, options, names, targets", CASES.values(), ids=CASES)
def test_all_linear_warns_once_and_adapts_the_rest(make, options, names, targets):
    config = mp.TensorNetworkConfig(r=1, target_modules="all-linear", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = mp.adapter_of(get_peft_model(make(), config))
    lines = [warning for warning in caught if "targets 'all-linear' leave out" in str(warning.message)]
    assert len(lines) == bool(names) and all(line.filename == __file__ for line in lines)
    heads = [weight for weight in adapter.skipped if "output head" in weight.reason]
    assert [w.path.rpartition(".")[2] for w in adapter.skipped if w not in heads] == names
    assert len(adapter.targets) == targets and ("skipped" in repr(adapter)) == bool(adapter.skipped)


def test_a_model_with_skipped_layers_runs_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    base = AttentionNet().eval()
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    with pytest.warns(UserWarning, match="leave out weights of AttentionNet"):
        config = mp.TensorNetworkConfig(r=2, target_modules="all-linear", init_weights=False)
        model = get_peft_model(base, config).eval()
    x = torch.rand(1, 3, 4)
    expected = model(x)
    model.save_pretrained(tmp_path)
    other = AttentionNet().eval()
    other.load_state_dict(weights)
    assert not torch.equal(expected, other(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a loaded adapter has the targets of its folder
        assert torch.equal(mp.load(other, tmp_path)(x), expected)


def test_a_name_of_the_user_is_refused():
    with pytest.raises(ValueError, match="out_proj.* is not supported: nn.MultiheadAttention reads this weight itself"):
        get_peft_model(AttentionNet(), mp.TensorNetworkConfig(r=1, target_modules=["fc", "out_proj"]))
