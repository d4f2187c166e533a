"""The sections of the GPU bench, in real size and in a tiny size for a dry run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.graphed import graphed_steps_section, graphed_tenants_section
from metalora.bench.gpu.kernels import kernels_section
from metalora.bench.gpu.launches import launches_section
from metalora.bench.gpu.laws import CASES, LAYERS, Kernels, LawCase, law_row
from metalora.bench.gpu.many_tenants import tenants_section
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, llama, resnet50, small_batch, table_20, tiny, vit_large
from metalora.bench.gpu.timed import timed_section

TRITON_LAWS = ("lora", "metatt-4d", "moe-lora", "metalora-cp", "metalora-tr")


def sections(dry_run: bool) -> list[Section]:
    """All sections, in the order in which they run: the most important first.

    Args:
        dry_run: Tiny shapes, for a machine without a card.
    """
    laws = [
        _laws_section("laws float32", 10, torch.float32, dry_run),
        _laws_section("laws bfloat16", 8, torch.bfloat16, dry_run),
        _laws_section("laws float16", 8, torch.float16, dry_run),
        _laws_section("laws triton bfloat16", 30, torch.bfloat16, dry_run, "triton"),
    ]
    kernels = kernels_section("kernels bfloat16", 22, dry_run)
    return [*laws, *_made(_steps(), dry_run), kernels, *_made(_tenants_and_models(), dry_run)]


# How a section is made, its name, its seconds and its setup. The seconds leave a margin above those of the rows in
# papers/results/gpu.jsonl; their sum is below that of a run.
_Parts = list[tuple[Callable[[str, float, Setup], Section], str, float, Setup]]


def _made(parts: _Parts, dry_run: bool) -> list[Section]:
    return [make(name, seconds, tiny(setup) if dry_run else setup) for make, name, seconds, setup in parts]


def _steps() -> _Parts:
    """A training step, beside PEFT's LoRA: by PyTorch's and Triton's kernels, and as one CUDA graph."""
    setup = small_batch("bfloat16", triton=True)
    return [
        (timed_section, "small batch roberta-base bfloat16", 30, setup),
        (graphed_steps_section, "graphed steps roberta-base bfloat16", 20, setup),
        (launches_section, "launches roberta-base bfloat16", 22, setup),
    ]


def _tenants_and_models() -> _Parts:
    roberta = partial(table_20, "roberta-base", vera_rank=1024, metatt_rank=24)
    large = partial(table_20, "roberta-large", vera_rank=256, metatt_rank=32)
    few_tenants = partial(tenants_section, with_peers=False)
    compiled, with_graphs = (small_batch("bfloat16", compile=mode) for mode in ("default", "reduce-overhead"))
    return [
        (timed_section, "compiled roberta-base bfloat16", 66, compiled),
        # The compiler takes its kernels from the section before.
        (
            timed_section,
            "compiled graphs roberta-base bfloat16",
            38,
            small_batch("bfloat16", compile="reduce-overhead"),
        ),
        # 64 tenants; of these setups only the model and the batch are used.
        (tenants_section, "serving roberta-base bfloat16", 25, roberta("bfloat16")),
        (graphed_tenants_section, "graphed serving roberta-base bfloat16", 12, roberta("bfloat16")),
        (few_tenants, "serving resnet50 bfloat16", 10, resnet50("bfloat16")),
        (graphed_tenants_section, "graphed serving resnet50 bfloat16", 12, resnet50("bfloat16")),
        # Tables 20 and, as the ratio of two steps, 18 of MetaTT.
        (timed_section, "roberta-base float32", 12, roberta("float32")),
        (timed_section, "roberta-large float32", 28, large("float32")),
        (timed_section, "llama-1b bfloat16", 26, llama()),
        # Other shapes and types.
        (few_tenants, "serving roberta-base float32", 8, roberta("float32")),
        (few_tenants, "serving resnet50 float32", 10, resnet50("float32")),
        (timed_section, "small batch roberta-base float32", 8, small_batch("float32")),
        (timed_section, "roberta-base bfloat16", 8, roberta("bfloat16")),
        (timed_section, "roberta-large bfloat16", 10, large("bfloat16")),
        (timed_section, "resnet50 float32", 8, resnet50()),
        (timed_section, "vit-large bfloat16", 12, vit_large()),
    ]


# ---- laws ----------------------------------------------------------------------------------------------------------
def _laws_section(name: str, seconds: float, dtype: torch.dtype, dry_run: bool, kernels: Kernels = "torch") -> Section:
    cases = [case for case in CASES if kernels == "torch" or case.method in TRITON_LAWS]
    cases = cases[:2] if dry_run else cases
    layers = LAYERS if kernels == "torch" else ("linear",)
    config = {"dtype": str(dtype).removeprefix("torch."), "kernels": kernels, "layers": list(layers)}
    config["methods"] = [case.method for case in cases]
    return Section(name, seconds, config, partial(_run_laws, cases, layers, dtype, kernels))


def _run_laws(
    cases: Sequence[LawCase], layers: Sequence[str], dtype: torch.dtype, kernels: Kernels, budget: Budget
) -> Results:
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # the default lets convolutions round float32 to 10 bits
    try:
        rows = [_law_row(case, layer, dtype, budget, kernels) for case in cases for layer in layers]
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    failed = [f"{row['method']} {row['layer']}" for row in rows if not row.get("passed")]
    return {"failed": failed, "cases": rows}


def _law_row(case: LawCase, layer: str, dtype: torch.dtype, budget: Budget, kernels: Kernels) -> Results:
    try:
        return law_row(case, layer, dtype, budget, kernels)
    except OutOfTime as error:
        return {"method": case.method, "layer": layer, "passed": False, "error": f"not run: {error}"}
