"""Law 7: the exact LoRA pair gives Delta W, and PEFT itself loads an exported folder."""

import copy

import pytest
import torch
from torch import nn

from metalora import (
    detach,
)
from oracles.dense import rows_of
from support.adapters import assert_close
from support.cases import CASES, attach_case, oracle_delta, stored
from support.laws import EVERY_PAIR
from support.layers import LAYERS, Layer


def lora_pair(model, condition):
    """(Left, Right) of target "0" for the first condition, and its values."""
    values = condition["condition"][0].values if condition else None
    return [t.detach() for t in model[0].pair(values)]


@EVERY_PAIR
def test_7_the_pair_reproduces_delta(case, layer):
    model, adapter, x, condition = attach_case(case, layer)
    left, right = lora_pair(model, condition)
    assert len(left) == len(right) == model[0].form.rank
    assert left.shape[2:] == getattr(model[0].base, "kernel_size", ())
    rows = sum(left[k] * right[k].reshape(-1, *[1] * left[k].ndim) for k in range(len(left)))  # out x in x [kernel]
    magnitude = model[0].magnitude(condition["condition"][0].values if condition else None)
    weight = model[0].base.weight.detach()
    if magnitude is not None:  # the pair is that of the direction alone
        base_rows = rows_of(layer.kind, weight, layer.groups)
        norms = (base_rows + rows).flatten(1).norm(dim=1)
        shape = [-1, *[1] * (rows.ndim - 1)]
        rows = (magnitude.detach() / norms).reshape(shape) * (base_rows + rows) - base_rows
    dense = stored(layer, rows.movedim(1, -1).movedim(0, -1), weight)
    assert_close(dense, oracle_delta(case, layer, adapter, condition.get("condition"), 0))


PEFT_LAYERS = {  # PEFT's LoRA of a convolution leaves out the base's dilation and padding mode, so these have neither
    "linear": LAYERS["linear"],
    "conv1d_gpt2": LAYERS["conv1d_gpt2"],
    "embedding": LAYERS["embedding"],
    "conv1d": Layer("conv1d", lambda: nn.Conv1d(4, 5, 3, stride=2, padding=2), (4, 5), (4, 17)),
    "conv2d": Layer("conv2d", lambda: nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 0)), (3, 6, 5), (3, 11, 9)),
    "conv2d-1x1": LAYERS["conv2d-1x1"],
    "conv2d-same": LAYERS["conv2d-same"],
}
PEFT_CASES = {
    name: CASES[name]
    for name in (
        "lora",
        "conv-lora",
        "multi-lora",
        "moe-lora-g",
        "metalora-cp-c",
        "metalora-tr-C",
        "metalora-square-C",
        "lora-A",
        "vera",
        "dora",
        "loha",
        "lokr",
        "tt-lora",
        "quanta",
        "lokr-full",
        "miss",
        "cara",
        "tenslora-qkv-depth-ranks",
        "metatt-4+1d-tasks",
        "mtlora-tasks",
    )
}


def into_peft(layer, base, left, right):
    """A PEFT LoRA model of the base with lora_A = Left and lora_B = Right."""
    from peft import LoraConfig, get_peft_model

    k = len(left)
    config = LoraConfig(r=k, lora_alpha=k, target_modules=["0"], fan_in_fan_out=layer.kind == "conv1d_gpt2")
    peft = get_peft_model(base, config).double().eval()
    module = peft.base_model.model[0]
    with torch.no_grad():
        if layer.kind == "embedding":
            module.lora_embedding_A["default"].copy_(left)
            module.lora_embedding_B["default"].copy_(right.T)
        else:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.copy_(left)
            b.copy_(right.T.reshape(b.shape))
    return peft


IN_FLOAT32 = ("metalora-tr-C", "metatt-4+1d-tasks", "tenslora-qkv-depth-ranks")
PRECISIONS = {f"{name}-f64": (case, torch.float64, 1e-10) for name, case in PEFT_CASES.items()}
PRECISIONS |= {f"{name}-f32": (CASES[name], torch.float32, 1e-5) for name in IN_FLOAT32}
EXPORTED = {
    f"{name}-{kind}": (*row, layer)
    for name, row in PRECISIONS.items()
    for kind, layer in PEFT_LAYERS.items()
    if row[0].fits(layer)
}


@pytest.mark.parametrize("case, dtype, tolerance, layer", EXPORTED.values(), ids=EXPORTED)
def test_7_peft_loads_the_exported_directory(case, dtype, tolerance, layer, tmp_path):
    from peft import PeftModel

    model, adapter, x, _ = attach_case(case, layer, "many")
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    one = {"condition": case.condition(adapter, 1)} if case.per_example else {}
    [exported] = adapter.export_lora(tmp_path / "lora", **one)
    want = model(x, **one)
    detach(model)
    got = PeftModel.from_pretrained(model, tmp_path / "lora").eval()(x)
    assert got.dtype == dtype and (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1)
    assert exported.error == 0 and len(exported.ranks) == 1


@pytest.mark.parametrize("layer", (PEFT_LAYERS["conv2d"], PEFT_LAYERS["conv2d-1x1"]), ids=("3x2", "1x1"))
def test_7_conv_lora_is_pefts_lora_on_conv2d(layer):
    """Conv-LoRA (eq. 5) = PEFT's LoRA on Conv2d, factor by factor: A[h,w,i,r] is lora_A[r,i,h,w]."""
    model, adapter, x, _ = attach_case(CASES["conv-lora"], layer, "many")
    bare = copy.deepcopy(model)
    detach(bare)
    a, b = adapter.factors["0.A"].detach(), adapter.factors["0.B"].detach()
    peft = into_peft(layer, bare, a.permute(3, 2, 0, 1), b)
    assert_close(peft(x), model(x))
