"""Sections that time training steps, and generation, of several adapters on one model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.bench.cases import FLOOR, Case, Inputs, build_case
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import Measurements, build_all, describe_error, measure, step_peak_bytes
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.phases import Phases, training_phases

MANY_PROMPTS = 64  # that a server continues at once


def timed_section(name: str, seconds: float, setup: Setup) -> Section:
    """A section that times the training steps of a setup, and its generation if it has some.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model and its adapters.
    """
    return Section(name, seconds, setup.described(), partial(_run_timed, setup))


def build_adapted(setup: Setup, base: nn.Module, inputs: Inputs, name: str) -> Case:
    """Build a case of a setup with its own rank; the arguments are those of `build_case`."""
    rank = setup.ranks.get(name, setup.bench.rank)
    return build_case(name, base, inputs, replace(setup.bench, rank=rank))


def _run_timed(setup: Setup, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    # A compiled case takes so long that the last one may find no time.
    names = [*setup.ranks, FLOOR] if setup.bench.compile else [FLOOR, *setup.ranks]
    cases, errors = build_all(names, partial(build_adapted, setup, base, inputs), budget)
    for_steps = budget.part(budget.remaining / 2) if setup.new_tokens else budget
    measured, described = (_measure_compiled if setup.bench.compile else _measure)(cases, setup, for_steps)
    measured.errors.update(errors)
    rows = measured.rows()
    for row in rows:
        row["rank"] = setup.ranks.get(row["case"])
        row.update(described.get(row["case"], {}))
    results: Results = {"base_parameters": sum(p.numel() for p in base.parameters()), "cases": rows}
    if setup.new_tokens:
        try:
            results["decode"] = _decode(setup, base, inputs, cases, budget).rows()
        except OutOfTime as error:
            results["decode"] = [{"case": name, "error": f"not run: {error}"} for name in cases]
    return results


# What was measured, and what else is said of each case that was.
_Measured = tuple[Measurements, dict[str, Results]]


def _measure(cases: dict[str, Case], setup: Setup, budget: Budget) -> _Measured:
    measured = measure(_steps(cases), setup.bench.rounds, budget)
    return measured, {name: _described(cases[name]) | _step_memory(cases[name]) for name in measured.seconds}


def _measure_compiled(cases: dict[str, Case], setup: Setup, budget: Budget) -> _Measured:
    """Measure one case after another: the compiler finds one of several by trying the others, which takes longer."""
    measured, described = Measurements(), {}
    for name, case in cases.items():
        torch._dynamo.reset()
        counters.clear()
        try:
            alone = measure(_steps({name: case}), setup.bench.rounds, budget)
        except OutOfTime as error:
            measured.errors[name] = f"not run: {error}"
            continue
        measured.seconds |= alone.seconds
        measured.errors |= alone.errors
        described[name] = _described(case) | _compiler_counts()
    return measured, described


def _steps(cases: dict[str, Case]) -> dict[str, Callable[[], Phases]]:
    return {name: partial(training_phases, case) for name, case in cases.items()}


def _described(case: Case) -> Results:
    """The size of a case, and the kernels that its layers took."""
    described: Results = {"num_params": sum(parameter.numel() for parameter in case.learned)}
    adapter = adapter_of(case.model)
    if adapter is not None:
        described["kernels"] = kernels_of(adapter)
    return described


def _step_memory(case: Case) -> Results:
    try:
        return {"step_peak_bytes": step_peak_bytes(case)}
    except torch.OutOfMemoryError as error:
        return {"error": describe_error(error)}


def _compiler_counts() -> Results:
    """How often the compiler broke the graph, and how often it could not record one as a CUDA graph."""
    return {
        "graph_breaks": sum(counters["graph_break"].values()),
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
    }


def kernels_of(adapter: Adapter) -> list[str]:
    """The names of the kernels that the layers of an adapter took in their last forward."""
    return sorted({str(layer.kernel) for layer in adapter.layers.values()})


def _decode(setup: Setup, base: nn.Module, inputs: Inputs, cases: dict[str, Case], budget: Budget) -> Measurements:
    """Generate for one prompt and for many with each model; unmerged, as in a server that changes its adapters."""
    models: dict[str, nn.Module] = {name: case.model for name, case in cases.items()}
    models[FLOOR] = base  # the case has hooks at its targets
    prompt = inputs["input_ids"][:1]
    runs = {name: partial(_generate, model.eval(), prompt, setup.new_tokens) for name, model in models.items()}
    return measure(runs, 3, budget, warm=1)  # a run has many tokens, and so takes long


def _generate(model: nn.Module, prompt: torch.Tensor, new_tokens: int) -> Phases:
    """Seconds per generated token of a prompt (1, tokens), alone and in a batch of `MANY_PROMPTS`."""
    many = prompt.expand(MANY_PROMPTS, -1)
    return {
        "token": _seconds_per_token(model, prompt, new_tokens),
        f"token_of_{MANY_PROMPTS}": _seconds_per_token(model, many, new_tokens),
    }


@torch.no_grad()
def _seconds_per_token(model: Any, prompts: torch.Tensor, new_tokens: int) -> float:
    """Seconds for each position that is generated; the prompts (b, tokens) are part of the time."""
    synchronize()
    start = time.perf_counter()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    synchronize()
    return (time.perf_counter() - start) / new_tokens
