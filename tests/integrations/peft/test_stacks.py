"""Several module stacks through PEFT: the field of the configuration, and folders with and without it."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import T5Config, T5Model

import metalora.peft as mp

R = 4


def t5():
    torch.manual_seed(0)
    return T5Model(T5Config(d_model=16, d_kv=4, num_heads=4, d_ff=32, num_layers=2, vocab_size=50))


@pytest.mark.parametrize(
    "stacks, layers, projections",
    [(None, 4, 4), ("successive", 4, 4), ("aligned", 2, 6)],
)
def test_a_folder_keeps_how_the_layers_are_counted(stacks, layers, projections, tmp_path):
    model = get_peft_model(t5(), mp.MetaTTConfig(r=R, target_modules=["q", "v"], stacks=stacks, init_weights=False))
    adapter = mp.adapter_of(model)
    assert adapter.num_params() == 2 * 16 * R + (layers + projections) * R**2
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written.get("stacks", "aligned") == (stacks or "successive")
    loaded = mp.adapter_of(PeftModel.from_pretrained(t5(), tmp_path))
    assert loaded.num_params() == adapter.num_params()
    assert all(torch.equal(loaded.delta(path), adapter.delta(path)) for path in adapter.targets)


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="stacks.*'apart'"):
        mp.MetaTTConfig(r=R, target_modules=["q"], stacks="apart")
