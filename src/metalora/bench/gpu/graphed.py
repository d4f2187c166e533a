"""Training steps and inference captured as CUDA graphs: no calls by the processor, only what the card computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from metalora.bench.cases import FLOOR, Case, Inputs
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.laws import relative_error
from metalora.bench.gpu.many_tenants import (
    MANY,
    ONE,
    adapted_for_tenants,
    models_by_kernels,
    run_model,
    runs_by_kernels,
)
from metalora.bench.gpu.measure import Measurements, build_all, describe_error, measure
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.gpu.timed import build_adapted
from metalora.bench.phases import Phases

Output = TypeVar("Output")
WARM = 3  # calls before the capture, as torch asks for


def graphed_steps_section(name: str, seconds: float, setup: Setup) -> Section:
    """A section that times training steps of a setup, each captured as one graph with AdamW's update.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model and its adapters.
    """
    return Section(name, seconds, setup.described(), partial(_run_steps, setup))


def graphed_tenants_section(name: str, seconds: float, setup: Setup, rank: int = 8) -> Section:
    """A section that times inference for rows of many tenants, captured as a graph.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model, its batch and its targets; a tenant for each row.
        rank: Rank of the generated adapter.
    """
    return Section(name, seconds, setup.described() | {"ranks": {MANY: rank}}, partial(_run_tenants, setup, rank))


def _run_steps(setup: Setup, budget: Budget) -> Results:
    base, inputs = inputs_for_capture(setup)
    cases, errors = build_all([FLOOR, *setup.ranks], partial(build_adapted, setup, base, inputs), budget)
    runs: dict[str, Callable[[], object]] = {}
    for name, case in cases.items():
        try:
            runs[name] = captured(partial(_step, _capturable(case)))
        except OutOfTime:
            raise
        except Exception as error:
            errors[name] = describe_error(error)
    return {"cases": _measured(runs, errors, setup, budget).rows()}


def _run_tenants(setup: Setup, rank: int, budget: Budget) -> Results:
    base, inputs = inputs_for_capture(setup)
    base.eval()
    model, condition = adapted_for_tenants(setup, base, rank, len(next(iter(inputs.values()))))
    plain: dict[str, Callable[[], Tensor]] = {FLOOR: partial(run_model, base, inputs)}
    plain |= runs_by_kernels(models_by_kernels(model), inputs, condition)
    runs: dict[str, Callable[[], object]] = {}
    errors: dict[str, str] = {}
    differences: Results = {}
    for name, run in plain.items():
        try:
            runs[name] = graph = captured(run)
            differences[name] = relative_error(graph(), run())
        except OutOfTime:
            raise
        except Exception as error:
            errors[name] = describe_error(error)
    rows = _measured(runs, errors, setup, budget).rows(reference=ONE)
    return {"tenants": len(condition), "error_against_plain": differences, "cases": rows}


def inputs_for_capture(setup: Setup) -> tuple[nn.Module, Inputs]:
    """Return what `base_and_inputs` does, without the mask: transformers reads its numbers, and no graph can wait."""
    base, inputs = base_and_inputs(setup)
    inputs.pop("attention_mask", None)
    return base, inputs


def _measured(
    runs: dict[str, Callable[[], object]], errors: dict[str, str], setup: Setup, budget: Budget
) -> Measurements:
    measured = measure({name: partial(_timed, run) for name, run in runs.items()}, setup.bench.rounds, budget)
    measured.errors.update(errors)
    return measured


def _timed(run: Callable[[], object]) -> Phases:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return {"run": time.perf_counter() - start}


# ---- capturing -----------------------------------------------------------------------------------------------------
def captured(run: Callable[[], Output]) -> Callable[[], Output]:
    """Capture a function as a CUDA graph.

    Args:
        run: A function that does the same in every call, on tensors that stay where they are.

    Returns:
        A function that replays it and returns the output of the capture, which holds the new numbers; without a card
        `run` itself.
    """
    if not torch.cuda.is_available():
        return run
    stream = cast(Any, torch.cuda.Stream)()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> Output:
        graph.replay()
        return output

    return replay


def _capturable(case: Case) -> Case:
    """Give a case an optimiser that keeps its count of steps on the card."""
    case.model.train()
    if case.learned:
        case.optimizer = torch.optim.AdamW(case.learned, lr=1e-4, capturable=torch.cuda.is_available())
    return case


def _step(case: Case) -> Tensor:
    """A training step without a wait for the card; returns the loss."""
    if case.optimizer is not None:
        case.optimizer.zero_grad()
    loss = case.loss()
    torch.autograd.backward(loss)
    if case.optimizer is not None:
        case.optimizer.step()
    return loss
