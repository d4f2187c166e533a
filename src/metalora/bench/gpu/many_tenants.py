"""A batch of many tenants, each with a generated condition of its own, next to other ways to serve them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.attach import attach
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.targets import find_targets
from metalora.bench.cases import FLOOR, Inputs, adapt_by_many_loras, first_output
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.laws import relative_error
from metalora.bench.gpu.measure import describe_error, measure
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.phases import Phases
from metalora.config import AdapterConfig, ConditionConfig

METHOD, FEATURES = "metalora-cp", 64
MANY, ONE, LOOP = "a condition for each row", "one condition", "a loop over the conditions"
SAME = "the same condition for each row"
PEERS = "peft: a LoRA for each row"


def tenants_section(name: str, seconds: float, setup: Setup, rank: int = 8) -> Section:
    """A section that times inference for a batch whose rows belong to different tenants.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model, its batch and its targets; a tenant for each row.
        rank: Rank of the generated adapter and of PEFT's LoRAs.
    """
    config = setup.described() | {"method": METHOD, "ranks": {METHOD: rank, PEERS: rank}}
    return Section(name, seconds, config, partial(_run_tenants, setup, rank))


def _run_tenants(setup: Setup, rank: int, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    base.eval()
    batch = len(next(iter(inputs.values())))
    model, condition = adapted_for_tenants(setup, base, rank, batch)
    same = condition[torch.zeros(batch, dtype=torch.long, device=condition.features.device)]
    runs: dict[str, Callable[[], Tensor]] = {
        FLOOR: partial(run_model, base, inputs),
        ONE: partial(run_model, model, inputs, condition=condition[0]),
        SAME: partial(run_model, model, inputs, condition=same),
        MANY: partial(run_model, model, inputs, condition=condition),
        LOOP: partial(_one_by_one, model, inputs, condition),
    }
    errors: dict[str, str] = {}
    try:
        runs[PEERS] = _by_peft(setup, base, inputs, rank, batch)
    except Exception as error:
        errors[PEERS] = describe_error(error)
    budget.check()
    measured = measure({name: partial(timed, run) for name, run in runs.items()}, setup.bench.rounds, budget)
    measured.errors.update(errors)
    return {
        "tenants": batch,
        "condition_numbers": condition.vector().shape[1],
        "error_against_loop": relative_error(runs[MANY](), runs[LOOP]()),
        "error_of_frozen": relative_error(runs[FLOOR](), _one_by_one(base, inputs, None)),
        "change": relative_error(runs[FLOOR](), runs[MANY]()),
        "cases": measured.rows(reference=ONE),
    }


def adapted_for_tenants(setup: Setup, base: nn.Module, rank: int, tenants: int) -> tuple[nn.Module, Condition]:
    """Return a copy of the base with a generated adapter, and a condition for each tenant.

    Args:
        setup: The targets of the adapter.
        base: The frozen model.
        rank: The rank of the adapter.
        tenants: Number of conditions.
    """
    model = copy.deepcopy(base)
    source = ConditionConfig(source="tensor", feature_size=FEATURES)
    adapter = attach(model, AdapterConfig(METHOD, rank, targets=setup.bench.targets, condition=source))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1)  # as after training: the update of every tenant is another one
        features = torch.randn(tenants, FEATURES).to(next(model.parameters()).device)
        condition = adapter.condition(features)
    return model.eval(), condition


@torch.no_grad()
def run_model(model: Any, inputs: Inputs, **options: Any) -> Tensor:
    """Run inference and return the output tensor of a model, or the first of several.

    Args:
        model: The model.
        inputs: Keyword arguments of its forward.
        **options: Further ones.
    """
    return first_output(model(**inputs, **options))


def _one_by_one(model: nn.Module, inputs: Inputs, condition: Condition | None) -> Tensor:
    """One forward for each row."""
    outputs = []
    for row in range(len(next(iter(inputs.values())))):
        options = {} if condition is None else {"condition": condition[row]}
        outputs.append(run_model(model, {name: value[row : row + 1] for name, value in inputs.items()}, **options))
    return torch.cat(outputs)


def _by_peft(setup: Setup, base: nn.Module, inputs: Inputs, rank: int, tenants: int) -> Callable[[], Tensor]:
    paths = [target.path for target in find_targets(base, setup.bench.targets)]
    names = [f"tenant{number}" for number in range(tenants)]
    model = adapt_by_many_loras(copy.deepcopy(base), paths, rank, names)
    return partial(run_model, model, inputs, adapter_names=names)


def timed(run: Callable[[], Tensor]) -> Phases:
    """Run inference once and return its seconds."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return {"forward": time.perf_counter() - start}
