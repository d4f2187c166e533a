"""Law 4: an adapter that is saved and loaded is equal bit for bit, and its file holds what was declared."""

import copy

import torch
from safetensors import safe_open

from metalora import (
    detach,
    load,
    save,
)
from support.cases import attach_case
from support.laws import (
    EVERY_CELL,
)


@EVERY_CELL
def test_4_save_load_is_bit_equal_and_holds_the_declared_parameters(case, layer, tmp_path):
    model, adapter, x, condition = attach_case(case, layer)
    fresh = copy.deepcopy(model)
    detach(fresh)
    save(model, tmp_path / "adapter")
    other = load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x, **condition), model(x, **condition))
    if case.per_example:
        assert torch.equal(case.condition(other, 3, 1).vector(), case.condition(adapter, 3, 1).vector())
    net = ["trunk.weight", "trunk.bias", "head.weight", "head.bias"] + ["embedding"] * (case.heads == "shared")
    declared = {f"factors/{key}" for key, one in adapter.layout.params.items() if not one.frozen}
    declared |= {f"conditioner/mapping_net.{p}" for p in net} if case.generated else set()
    buffers = {"conditioner/mean", "conditioner/std"} if case.generated else set()
    with safe_open(tmp_path / "adapter", "pt") as file:
        assert set(file.keys()) == declared | buffers
        assert sum(file.get_tensor(key).numel() for key in declared) == adapter.num_params()
