"""Triton kernels in Triton's interpreter beside dense float64 and plain autograd; what `use_kernels` refuses."""

import importlib
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
SHARED_MEMORY = 99 * 1024  # bytes of a multiprocessor that a program may take on the smallest cards since Ampere


@pytest.mark.slow
@needs_triton
def test_the_interpreted_kernels_compute_what_plain_autograd_does():
    code = Path(triton_cases.__file__).read_text()  # the interpreter is chosen before the kernels are imported
    done = run_fresh(code, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    failed = json.loads(done.stdout)
    assert not failed, "\n".join(f"{name}\n{error}" for name, error in failed.items())


class CompilerForCard:
    """Takes the place of the driver: kernels are compiled for an H100, which needs no card, and are not launched."""

    def get_current_target(self):
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


class Compiled:
    """A kernel that is compiled for the arguments of each call."""

    def __init__(self, kernel, made):
        self.kernel, self.made = kernel, made

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.made.append(
            (self.kernel.__name__, self.kernel.warmup(*arguments, grid=grid, **options))
        )


LAYERS = {  # examples, tokens, channels, rank, and the number of conditions in a table
    "RoBERTa-base, 8 x 128": (8, 128, 768, 8, None),
    "RoBERTa-base, 64 x 128": (64, 128, 768, 24, None),
    "64 tenants": (64, 128, 768, 8, 64),
    "the largest rank": (8, 128, 1024, 128, 3),
    "odd sizes": (4, 41, 97, 3, 3),
}
# The compiler takes up to 12 seconds for a product of float32 at the largest rank.
LAYERS_IN = {"bfloat16": list(LAYERS), "float16": list(LAYERS), "float32": [*list(LAYERS)[:3], "odd sizes"]}


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", LAYERS_IN)
def test_a_card_can_run_what_the_layers_launch(dtype, tmp_path, monkeypatch):
    import triton

    from metalora.adapters.triton_kernels import launch, node

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton.runtime.driver, "_active", CompilerForCard())
    made = []
    for name in ("add_low_rank_kernel", "products_over_rows_kernel", "products_of_conditions_kernel"):
        monkeypatch.setattr(launch, name, Compiled(getattr(launch, name), made))
    for name in LAYERS_IN[dtype]:
        examples, tokens, channels, rank, conditions = LAYERS[name]
        sizes = [(examples * tokens, channels), (channels, channels), (channels,), (rank, channels), (rank, channels)]
        operands = [torch.zeros(size, dtype=getattr(torch, dtype)) for size in sizes]
        operands += [] if conditions is None else [torch.zeros(conditions, rank, rank, dtype=operands[0].dtype)]
        index = None if conditions is None else torch.zeros(examples, dtype=torch.long)
        leaves = [x.requires_grad_() for place, x in enumerate(operands) if place not in (1, 2)]
        del made[:]
        y = node.low_rank_linear(*operands, *([None] * (6 - len(operands))), index)
        torch.autograd.grad(y.sum(), leaves)
        assert [name for name, _ in made] == LAUNCHES[: 3 if conditions is None else 4]
        for kernel, binary in made:
            assert binary.asm["cubin"] and binary.metadata.shared <= SHARED_MEMORY, (name, kernel)


LAUNCHES = [
    "add_low_rank_kernel",
    "add_low_rank_kernel",
    "products_over_rows_kernel",
    "products_of_conditions_kernel",
]


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
