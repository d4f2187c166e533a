"""The sections of the GPU bench, in real size and in a tiny size for a dry run."""

from __future__ import annotations

from functools import partial

import torch

from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.graphed import graphed_steps_section, graphed_tenants_section
from metalora.bench.gpu.launches import launches_section
from metalora.bench.gpu.laws import CASES, LAYERS, law_row
from metalora.bench.gpu.many_tenants import tenants_section
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, llama, resnet50, small_batch, table_20, tiny, vit_large
from metalora.bench.gpu.timed import timed_section
from metalora.bench.gpu.triton import triton_section


def sections(dry_run: bool) -> list[Section]:
    """All sections, in the order in which they run; the most important first.

    Args:
        dry_run: Tiny shapes, for a machine without a card.
    """
    methods = 2 if dry_run else len(CASES)
    return [
        *(_laws_section(dtype, methods) for dtype in ("float32", "bfloat16", "float16")),
        *(launches_section(name, 20, _sized(setup, dry_run)) for name, setup in _launches().items()),
        _triton(dry_run),
        *_graphed(dry_run),
        *(tenants_section(name, 25, _sized(setup, dry_run)) for name, setup in _tenants().items()),
        *(timed_section(name, seconds, _sized(setup, dry_run)) for name, (seconds, setup) in _timed().items()),
    ]


def _sized(setup: Setup, dry_run: bool) -> Setup:
    return tiny(setup) if dry_run else setup


def _launches() -> dict[str, Setup]:
    return {"launches roberta-base bfloat16": small_batch("bfloat16")}


def _triton(dry_run: bool) -> Section:
    tenants = table_20("roberta-base", "bfloat16", vera_rank=1024, metatt_rank=24)
    steps = small_batch("bfloat16")
    return triton_section("triton roberta-base bfloat16", 45, _sized(steps, dry_run), _sized(tenants, dry_run))


def _graphed(dry_run: bool) -> list[Section]:
    tenants = table_20("roberta-base", "bfloat16", vera_rank=1024, metatt_rank=24)
    return [
        graphed_steps_section("graphed steps roberta-base bfloat16", 15, _sized(small_batch("bfloat16"), dry_run)),
        graphed_tenants_section("graphed serving roberta-base bfloat16", 15, _sized(tenants, dry_run)),
        graphed_tenants_section("graphed serving resnet50 bfloat16", 15, _sized(resnet50("bfloat16"), dry_run)),
    ]


def _tenants() -> dict[str, Setup]:
    """64 rows; the ranks of these setups are those of training, which are not used."""
    return {
        "serving roberta-base bfloat16": table_20("roberta-base", "bfloat16", vera_rank=1024, metatt_rank=24),
        "serving resnet50 bfloat16": resnet50("bfloat16"),
        "serving roberta-base float32": table_20("roberta-base", "float32", vera_rank=1024, metatt_rank=24),
        "serving resnet50 float32": resnet50("float32"),
    }


def _timed() -> dict[str, tuple[float, Setup]]:
    """Name -> seconds and setup."""
    return {
        "small batch roberta-base bfloat16": (15, small_batch("bfloat16")),
        "small batch roberta-base float32": (15, small_batch("float32")),
        "roberta-base float32": (25, table_20("roberta-base", "float32", vera_rank=1024, metatt_rank=24)),
        "roberta-large float32": (40, table_20("roberta-large", "float32", vera_rank=256, metatt_rank=32)),
        "roberta-base bfloat16": (20, table_20("roberta-base", "bfloat16", vera_rank=1024, metatt_rank=24)),
        "roberta-large bfloat16": (30, table_20("roberta-large", "bfloat16", vera_rank=256, metatt_rank=32)),
        "llama-1b bfloat16": (50, llama()),
        "resnet50 float32": (25, resnet50()),
        "vit-large bfloat16": (25, vit_large()),
        # The last one, since compiling takes as long as all others together.
        "compiled roberta-base bfloat16": (100, small_batch("bfloat16", compile=True)),
    }


# ---- laws ----------------------------------------------------------------------------------------------------------
def _laws_section(dtype: str, methods: int) -> Section:
    config = {"dtype": dtype, "methods": [case.method for case in CASES[:methods]], "layers": list(LAYERS)}
    return Section(f"laws {dtype}", 20, config, partial(_run_laws, getattr(torch, dtype), methods))


def _run_laws(dtype: torch.dtype, methods: int, budget: Budget) -> Results:
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # the default lets convolutions round float32 to 10 bits
    try:
        rows = [law_row(case, layer, dtype, budget) for case in CASES[:methods] for layer in LAYERS]
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    failed = [f"{row['method']} {row['layer']}" for row in rows if not row.get("passed")]
    return {"failed": failed, "cases": rows}
