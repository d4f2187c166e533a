"""Triton kernels in Triton's interpreter beside dense float64 and plain autograd; what `use_kernels` refuses."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach
from metalora.adapters.conditioning.rows import RowValues, values_of_rows
from support import triton_cases
from support.fresh_process import run_fresh

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this PyTorch has no Triton")
POINTERS = (
    "x",
    "y",
    "left",
    "right",
    "mid",
    "hidden",
    "mixed",
    "a",
    "b",
    "a_times_b",
    "c",
    "d",
    "c_times_d",
    "product",
)
BLOCKS = dict(BLOCK_TOKENS=16, BLOCK_CHANNELS=32, BLOCK_ROWS=16, BLOCK_COLUMNS=32, BLOCK_RANK=16, BLOCK_MIXED=16)


@needs_triton
def test_the_interpreted_kernels_compute_what_plain_autograd_does():
    code = Path(triton_cases.__file__).read_text()  # the interpreter is chosen before the kernels are imported
    done = run_fresh(code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout)
    assert not failed, "\n".join(f"{name}\n{error}" for name, error in failed.items())


def compiled(kernel, dtype, **flags):
    """Compile a kernel for an H100 with a card's compiler, which needs no card; returns its machine code."""
    import triton

    types = dict.fromkeys((*POINTERS, "gradient"), f"*{dtype}") | {"index": "*i64"}
    constants = {
        name: value for name, value in (flags | BLOCKS | {"WIDENS": False}).items() if name in kernel.arg_names
    }
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, signature, places)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"num_stages": 2}).asm["cubin"]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_compiler_for_a_card_takes_the_kernels(dtype, tmp_path, monkeypatch):
    from metalora.adapters.triton_kernels import device

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with_table = dict(HAS_MID=True, HAS_INDEX=True, WRITES_OUTPUT=True, KEEPS_HIDDEN=True)
    without = dict(HAS_MID=False, HAS_INDEX=False, WRITES_OUTPUT=True, KEEPS_HIDDEN=False)
    without |= dict(mid=None, index=None, hidden=None, mixed=None)
    no_output = with_table | dict(WRITES_OUTPUT=False, y=None)
    for flags in (with_table, without, no_output):
        assert compiled(device.add_low_rank_kernel, dtype, **flags)
    assert compiled(device.products_over_rows_kernel, dtype)
    assert compiled(device.products_of_conditions_kernel, dtype, HAS_INDEX=True)
    assert compiled(device.products_of_conditions_kernel, dtype, HAS_INDEX=False, index=None)


def adapted():
    model = nn.Sequential(nn.Linear(4, 4))
    return model, attach(model, AdapterConfig("lora", rank=2, targets="0"))


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model, adapter = adapted()
    with pytest.raises(ValueError, match="unknown kernels 'tirton'; did you mean 'triton'"):
        adapter.use_kernels("tirton")
    if importlib.util.find_spec("triton") is not None:
        with pytest.raises(ValueError, match="there is no CUDA card; TRITON_INTERPRET=1, set before Python starts"):
            adapter.use_kernels("triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed"):
        adapter.use_kernels("triton")
    assert not adapter.uses_triton
    model(torch.ones(1, 4))
    assert str(model[0].kernel) == "Fused"


@needs_triton
def test_an_input_on_the_cpu_takes_the_path_of_torch():
    model, adapter = adapted()
    adapter.uses_triton = True  # as after `use_kernels` on a card and a move to the CPU
    model(torch.ones(1, 4, requires_grad=True))
    assert str(model[0].kernel) == "Fused"


def test_values_of_rows_are_copied_when_they_are_read_with_and_without_gradients():
    table = {"C": torch.randn(3, 2, requires_grad=True), "D": torch.randn(3, 4)}
    rows = [2, 0, 2, 2]
    values, copied = values_of_rows(table, rows, copy=False), values_of_rows(table, rows)
    assert type(values) is RowValues and values.table is table and not values._copied
    with torch.no_grad():
        assert not values["C"].requires_grad
    assert values["C"].requires_grad and torch.equal(values["C"], copied["C"])
    assert {key: len(value) for key, value in values.items()} == {"C": 4, "D": 4}
    with pytest.raises(ValueError, match="are not all numbers of conditions"):
        values_of_rows(table, [3], copy=False)
