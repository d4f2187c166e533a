"""The sections of the GPU bench, in real size and in a tiny size for a dry run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from metalora.bench.cases import FLOOR, PEFT, Case, Inputs, build_case, build_model, freeze
from metalora.bench.config import BenchConfig
from metalora.bench.device import bench_device, synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.laws import CASES, LAYERS, LawCase, check_laws
from metalora.bench.gpu.measure import (
    Measurements,
    build_all,
    describe_error,
    measure,
    step_peak_bytes,
)
from metalora.bench.phases import Phases, training_phases
from metalora.config import ConditionConfig
from metalora.zoo import build_architecture

Results = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the bench, which becomes one row.

    Attributes:
        name: Its name.
        seconds: Its time budget.
        config: What it measures, as it stands in the row.
        run: Measures it within a budget.
    """

    name: str
    seconds: float
    config: dict[str, Any]
    run: Callable[[Budget], Results]


@dataclass(frozen=True)
class Setup:
    """A model and the adapters that are measured on it.

    Attributes:
        bench: The model, its batch and its targets.
        ranks: Case -> rank. The frozen model is always a case.
        sizes: Sizes that replace those of the architecture.
        causal: The model is a decoder with the head of a language model.
        new_tokens: Tokens that are generated at batch 1; 0: no generation.
    """

    bench: BenchConfig
    ranks: dict[str, int]
    sizes: dict[str, int] = field(default_factory=dict)
    causal: bool = False
    new_tokens: int = 0


def sections(dry_run: bool) -> list[Section]:
    """All sections, in the order in which they run; the most important first.

    Args:
        dry_run: Tiny shapes, for a machine without a card.
    """
    laws = [
        _laws_section("float32", 2 if dry_run else len(CASES)),
        _laws_section("bfloat16", 2 if dry_run else len(CASES)),
    ]
    setups = {
        "roberta-base float32": (40, _roberta("roberta-base", "float32", vera_rank=1024, metatt_rank=24)),
        "roberta-large float32": (70, _roberta("roberta-large", "float32", vera_rank=256, metatt_rank=32)),
        "llama-1b bfloat16": (110, _llama()),
        "resnet50 float32": (45, _resnet50()),
        "roberta-base bfloat16": (35, _roberta("roberta-base", "bfloat16", vera_rank=1024, metatt_rank=24)),
        "roberta-large bfloat16": (50, _roberta("roberta-large", "bfloat16", vera_rank=256, metatt_rank=32)),
    }
    timed = [
        _timed_section(name, seconds, _tiny(setup) if dry_run else setup) for name, (seconds, setup) in setups.items()
    ]
    return [*laws, *timed]


# ---- what is measured ----------------------------------------------------------------------------------------------
def _roberta(architecture: str, dtype: Literal["float32", "bfloat16"], vera_rank: int, metatt_rank: int) -> Setup:
    """Table 20 of MetaTT (arXiv:2506.09105): a batch of 64, query and value, each method at its published rank."""
    bench = BenchConfig(
        model=architecture, dtype=dtype, targets=("query", "value"), clip_rank=False, batch=64, tokens=128, rounds=7
    )
    ranks = {
        PEFT + "lora": 8,
        PEFT + "vera": vera_rank,
        "lora": 8,
        "vera": vera_rank,
        "metatt-4d": metatt_rank,
        "metatt-5d": 64,
    }
    return Setup(bench, ranks)


def _resnet50() -> Setup:
    condition = ConditionConfig(source="stem", stem="maxpool")
    bench = BenchConfig(model="timm:resnet50", targets="conv", condition=condition, batch=64, size=224, rounds=7)
    return Setup(bench, {PEFT + "lora": 8, "lora": 8, "metalora-cp": 8})


def _llama() -> Setup:
    """A decoder of 1.1 billion parameters: Llama 3.2 1B with a vocabulary of 32,000."""
    bench = BenchConfig(
        model="llama-3.2-1b",
        dtype="bfloat16",
        targets=("q_proj", "v_proj"),
        clip_rank=False,
        batch=4,
        tokens=512,
        rounds=5,
    )
    ranks = {PEFT + "lora": 8, "lora": 8, "metatt-4d": 16}
    return Setup(bench, ranks, sizes={"vocab_size": 32_000}, causal=True, new_tokens=64)


def _tiny(setup: Setup) -> Setup:
    """The same cases with the smallest shapes."""
    if setup.bench.model == "timm:resnet50":
        bench = replace(setup.bench, model="timm:resnet10t", batch=2, size=32, rounds=1)
        return replace(setup, bench=bench, ranks=dict.fromkeys(setup.ranks, 2))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": 50}
    # Llama's heads share keys and values; RoBERTa does not know the setting.
    if setup.causal:
        sizes |= {"num_key_value_heads": 1}
    return Setup(
        replace(setup.bench, batch=2, tokens=4, rounds=1),
        dict.fromkeys(setup.ranks, 2),
        sizes,
        setup.causal,
        min(setup.new_tokens, 2),
    )


# ---- laws ----------------------------------------------------------------------------------------------------------
def _laws_section(dtype: str, methods: int) -> Section:
    config = {"dtype": dtype, "methods": [case.method for case in CASES[:methods]], "layers": list(LAYERS)}
    return Section(f"laws {dtype}", 40, config, partial(_run_laws, getattr(torch, dtype), methods))


def _run_laws(dtype: torch.dtype, methods: int, budget: Budget) -> Results:
    allow_tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # the default lets convolutions round float32 to 10 bits
    try:
        rows = [_law_row(case, layer, dtype, budget) for case in CASES[:methods] for layer in LAYERS]
    finally:
        torch.backends.cudnn.allow_tf32 = allow_tf32
    failed = [f"{row['method']} {row['layer']}" for row in rows if not row.get("passed")]
    return {"failed": failed, "cases": rows}


def _law_row(case: LawCase, layer: str, dtype: torch.dtype, budget: Budget) -> Results:
    budget.check()
    row: Results = {"method": case.method, "layer": layer}
    try:
        return row | check_laws(case, layer, bench_device(), dtype)
    except OutOfTime:
        raise
    except Exception as error:
        return row | {"passed": False, "error": describe_error(error)}


# ---- times ---------------------------------------------------------------------------------------------------------
def _timed_section(name: str, seconds: float, setup: Setup) -> Section:
    config = {
        "model": setup.bench.model,
        "sizes": setup.sizes,
        "targets": setup.bench.targets,
        "batch": setup.bench.batch,
        "tokens": setup.bench.tokens,
        "size": setup.bench.size,
        "dtype": setup.bench.dtype,
        "ranks": setup.ranks,
        "new_tokens": setup.new_tokens,
    }
    return Section(name, seconds, config, partial(_run_timed, setup))


def _run_timed(setup: Setup, budget: Budget) -> Results:
    base, inputs = _base_and_inputs(setup)
    names = [FLOOR, *setup.ranks]
    cases, errors = build_all(names, partial(_build, setup, base, inputs), budget)
    measured = measure(
        {name: partial(training_phases, case) for name, case in cases.items()}, setup.bench.rounds, budget
    )
    measured.errors.update(errors)
    rows = measured.rows()
    for row in rows:
        row["rank"] = setup.ranks.get(row["case"])
        if "error" not in row:
            row |= _sizes_and_memory(cases[row["case"]])
    results: Results = {"base_parameters": sum(p.numel() for p in base.parameters()), "cases": rows}
    if setup.new_tokens:
        results["decode"] = _decode(setup, base, inputs, cases, budget).rows()
    return results


def _sizes_and_memory(case: Case) -> Results:
    sizes = {"num_params": sum(parameter.numel() for parameter in case.learned)}
    try:
        return sizes | {"step_peak_bytes": step_peak_bytes(case)}
    except torch.OutOfMemoryError as error:
        return sizes | {"error": describe_error(error)}


def _base_and_inputs(setup: Setup) -> tuple[nn.Module, Inputs]:
    bench = setup.bench
    if bench.model.startswith("timm:"):
        return build_model(bench)
    torch.manual_seed(0)
    device, dtype = bench_device(), getattr(torch, bench.dtype)
    model = build_architecture(bench.model, device=device, causal=setup.causal, **setup.sizes).to(dtype)
    vocabulary = cast(Any, model).get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (bench.batch, bench.tokens)).to(device)
    if setup.causal:
        cast(Any, model).config.use_cache = False  # a training step has no use for the keys and values
        return freeze(model), {"input_ids": ids}
    return freeze(model), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _build(setup: Setup, base: nn.Module, inputs: Inputs, name: str) -> Case:
    rank = setup.ranks.get(name, setup.bench.rank)
    return build_case(name, base, inputs, replace(setup.bench, rank=rank))


def _decode(setup: Setup, base: nn.Module, inputs: Inputs, cases: dict[str, Case], budget: Budget) -> Measurements:
    """Generate tokens for one prompt with each model; unmerged, as in a server that changes its adapters."""
    models: dict[str, nn.Module] = {name: case.model for name, case in cases.items()}
    models[FLOOR] = base  # the case has hooks at its targets
    prompt = inputs["input_ids"][:1]
    runs = {name: partial(_generate, model.eval(), prompt, setup.new_tokens) for name, model in models.items()}
    return measure(runs, setup.bench.rounds, budget)


@torch.no_grad()
def _generate(model: Any, prompt: torch.Tensor, new_tokens: int) -> Phases:
    """Seconds per generated token; the prompt (1, tokens) is part of the time."""
    synchronize()
    start = time.perf_counter()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    synchronize()
    return {"token": (time.perf_counter() - start) / new_tokens}
