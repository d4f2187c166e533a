"""How many kernels an adapter launches, and where a training step waits for the card.

On a card an adapter costs launches more than products: each takes the processor some microseconds. A line that reads a
number of the card waits until the card has computed it, so that the processor can no longer run ahead.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from metalora.adapters.attach import attach
from metalora.adapters.targets import find_targets
from metalora.bench.cases import FLOOR, Case, Inputs
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import describe_error
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.gpu.timed import build_adapted
from metalora.config import AdapterConfig, ConditionConfig

GENERATED = "metalora-cp"  # its condition comes from features, which are an input of this case
FEATURES = 64
WARM_STEPS = 2


def launches_section(name: str, seconds: float, setup: Setup) -> Section:
    """A section that counts the launches of one training step of each case of a setup, and of a generated adapter.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model and its adapters.
    """
    return Section(name, seconds, setup.described() | {"generated": GENERATED}, partial(_run_launches, setup))


def _run_launches(setup: Setup, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    targets = len(find_targets(base, setup.bench.targets))
    rows: list[Results] = []
    for name in (FLOOR, *setup.ranks, GENERATED):
        budget.check()
        try:
            rows.append({"case": name} | step_counts(_case(setup, base, inputs, name)))
        except OutOfTime:
            raise
        except Exception as error:
            rows.append({"case": name, "error": describe_error(error)})
    return {"targets": targets, "cases": _beyond_floor(rows, targets)}


def _case(setup: Setup, base: nn.Module, inputs: Inputs, name: str) -> Case:
    build = _generated_case if name == GENERATED else partial(build_adapted, name=name)
    return build(setup, base, inputs)


def _generated_case(setup: Setup, base: nn.Module, inputs: Inputs) -> Case:
    """A case whose forward generates a factor for every example from features."""
    model = copy.deepcopy(base)
    condition = ConditionConfig(source="tensor", feature_size=FEATURES)
    adapter = attach(model, AdapterConfig(GENERATED, 8, targets=setup.bench.targets, condition=condition))
    batch = len(next(iter(inputs.values())))
    features = torch.randn(batch, FEATURES).to(next(model.parameters()).device)
    case = Case(model, inputs, list(adapter.parameters()))
    case.run = lambda **given: model(**given, condition=adapter.condition(features))
    return case


def step_counts(case: Case) -> Results:
    """Run some training steps and return the launches and the waits of a forward and of its backward."""
    for _ in range(WARM_STEPS):
        case.step()
    case.model.train()
    losses: list[Tensor] = []
    counts: Results = {}
    for phase, run in _phases(case, losses).items():
        counts[f"{phase}_launches"] = count_launches(run)
    for phase, run in _phases(case, losses).items():
        counts[f"{phase}_waits"] = waits(run)
    case.update()
    return counts


def _phases(case: Case, losses: list[Tensor]) -> dict[str, Callable[[], None]]:
    """Forward and backward, to be run in this order."""
    return {
        "forward": lambda: losses.append(case.loss()),
        "backward": lambda: torch.autograd.backward(losses.pop()),
    }


def _beyond_floor(rows: list[Results], targets: int) -> list[Results]:
    """Add to each row how many launches a target costs beyond the frozen model."""
    floor = rows[0]
    for row in rows:
        for phase in ("forward", "backward"):
            launches, of_floor = row.get(f"{phase}_launches"), floor.get(f"{phase}_launches")
            if launches is not None and of_floor is not None:
                row[f"{phase}_launches_per_target"] = (launches - of_floor) / targets
    return rows


# ---- counting ------------------------------------------------------------------------------------------------------
def count_launches(run: Callable[[], object]) -> int | None:
    """Run a function and count the kernels that it launches; None without a card.

    Args:
        run: The function.
    """
    if not torch.cuda.is_available():
        run()
        return None
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        run()
        synchronize()
    return launches_among(event.name for event in cast(Any, profiled.events()))


def launches_among(names: Iterable[str]) -> int:
    """Count the calls that launch a kernel among names of events, both of the runtime and of the driver.

    Example:
        >>> launches_among(["aten::mm", "cudaLaunchKernel", "cuLaunchKernelEx", "cudaMemsetAsync"])
        2
    """
    return sum("LaunchKernel" in name for name in names)


def waits(run: Callable[[], object]) -> list[str]:
    """Run a function and return the lines at which the processor waited for the card; none without a card.

    Args:
        run: The function.

    Returns:
        One "folder/file:line" for each time, in the order in which they happened.

    Example:
        >>> waits(lambda: None)
        []
    """
    with warnings.catch_warnings(record=True) as caught, _reported_waits():
        warnings.simplefilter("always")
        run()
    return [_place(warning) for warning in caught if "synchronizing" in str(warning.message)]


@contextmanager
def _reported_waits() -> Iterator[None]:
    """Let torch warn of every wait."""
    if not torch.cuda.is_available():
        yield
        return
    synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _place(warning: warnings.WarningMessage) -> str:
    return "/".join(Path(warning.filename).parts[-2:]) + f":{warning.lineno}"
