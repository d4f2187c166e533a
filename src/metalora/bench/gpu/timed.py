"""Sections that time training steps, and generation, of several adapters on one model."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from metalora.bench.cases import FLOOR, Case, Inputs, build_case
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.measure import Measurements, build_all, describe_error, measure, step_peak_bytes
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.phases import Phases, training_phases


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
    names = [FLOOR, *setup.ranks]
    cases, errors = build_all(names, partial(build_adapted, setup, base, inputs), budget)
    measured = (_measure_compiled if setup.bench.compile else _measure)(cases, setup, budget)
    measured.errors.update(errors)
    rows = measured.rows()
    for row in rows:
        row["rank"] = setup.ranks.get(row["case"])
        if "error" not in row:
            row |= _sizes_and_memory(cases[row["case"]], compiled=setup.bench.compile)
    results: Results = {"base_parameters": sum(p.numel() for p in base.parameters()), "cases": rows}
    if setup.new_tokens:
        results["decode"] = _decode(setup, base, inputs, cases, budget).rows()
    return results


def _measure(cases: dict[str, Case], setup: Setup, budget: Budget) -> Measurements:
    runs = {name: partial(training_phases, case) for name, case in cases.items()}
    return measure(runs, setup.bench.rounds, budget)


def _measure_compiled(cases: dict[str, Case], setup: Setup, budget: Budget) -> Measurements:
    """Measure one case after another: the compiler finds one of several by trying the others, which takes longer."""
    measured = Measurements()
    for name, case in cases.items():
        torch._dynamo.reset()
        alone = _measure({name: case}, setup, budget)
        measured.seconds |= alone.seconds
        measured.errors |= alone.errors
    return measured


def _sizes_and_memory(case: Case, compiled: bool) -> Results:
    sizes = {"num_params": sum(parameter.numel() for parameter in case.learned)}
    if compiled:  # a further step would compile the case again
        return sizes | {"step_peak_bytes": None}
    try:
        return sizes | {"step_peak_bytes": step_peak_bytes(case)}
    except torch.OutOfMemoryError as error:
        return sizes | {"error": describe_error(error)}


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
