"""A batch of many tenants, each with a generated condition of its own, next to other ways to serve them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach, required_adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.targets import find_targets
from metalora.adapters.triton_kernels.available import unavailable
from metalora.bench.cases import FLOOR, TRITON, Inputs, adapt_by_many_loras, first_output
from metalora.bench.device import synchronize
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.laws import relative_error
from metalora.bench.gpu.measure import WARM, Measurements, describe_error, measure
from metalora.bench.gpu.section import Results, Section
from metalora.bench.gpu.setups import Setup, base_and_inputs
from metalora.bench.gpu.timed import kernels_of
from metalora.bench.phases import Phases
from metalora.config import AdapterConfig, ConditionConfig

METHOD, FEATURES = "metalora-cp", 64
MANY, ONE, LOOP = "a condition for each row", "one condition", "a loop over the conditions"
SAME = "the same condition for each row"
PEERS = "peft: a LoRA for each row"
SLOW_ROUNDS = 3  # of the loop and of PEFT, which take 20 to 60 times as long as a batch


def tenants_section(name: str, seconds: float, setup: Setup, rank: int = 8, with_peers: bool = True) -> Section:
    """A section that times inference for a batch whose rows belong to different tenants.

    Args:
        name: Name of the section.
        seconds: Its time budget.
        setup: The model, its batch and its targets; a tenant for each row.
        rank: Rank of the generated adapter and of PEFT's LoRAs.
        with_peers: Whether a loop over the tenants and PEFT's LoRAs are timed too, which take most of the time.
    """
    ranks = {METHOD: rank} | ({PEERS: rank} if with_peers else {})
    return Section(
        name,
        seconds,
        setup.described() | {"method": METHOD, "ranks": ranks},
        partial(_run_tenants, setup, rank, with_peers),
    )


def _run_tenants(setup: Setup, rank: int, with_peers: bool, budget: Budget) -> Results:
    base, inputs = base_and_inputs(setup)
    base.eval()
    batch = len(next(iter(inputs.values())))
    model, condition = adapted_for_tenants(setup, base, rank, batch)
    models = models_by_kernels(model)
    runs = {FLOOR: partial(run_model, base, inputs)} | runs_by_kernels(models, inputs, condition)
    same = condition[torch.zeros(batch, dtype=torch.long, device=condition.features.device)]
    runs[SAME] = partial(run_model, model, inputs, condition=same)
    results: Results = {"tenants": batch, "condition_numbers": condition.vector().shape[1]}
    results |= {"change": relative_error(runs[FLOOR](), runs[MANY]())}
    if TRITON in models:
        results |= _triton_beside_torch(runs, required_adapter(models[TRITON], "bench"))
    results["cases"] = _measured(runs, setup.bench.rounds, budget).rows(reference=ONE)
    if with_peers:
        results |= _beside_peers(setup, rank, (base, model), inputs, condition, runs, results["cases"], budget)
    return results


def _triton_beside_torch(runs: dict[str, Callable[[], Tensor]], adapter: Adapter) -> Results:
    """The difference of the outputs and the kernels that ran; a failure of Triton costs no other number."""
    by_torch = runs[MANY]()
    try:
        by_triton = runs[MANY + TRITON]()
    except OutOfTime:
        raise
    except Exception as error:
        return {"triton_error": describe_error(error)}
    return {"error_against_torch": relative_error(by_triton, by_torch), "kernels": kernels_of(adapter)}


def _beside_peers(
    setup: Setup,
    rank: int,
    models: tuple[nn.Module, nn.Module],
    inputs: Inputs,
    condition: Condition,
    runs: dict[str, Callable[[], Tensor]],
    rows: list[Results],
    budget: Budget,
) -> Results:
    """Compare with a loop over the tenants and with PEFT, in few rounds; what finds no time costs no other number."""
    base, model = models
    slow: dict[str, Callable[[], Tensor]] = {ONE: runs[ONE], LOOP: partial(_one_by_one, model, inputs, condition)}
    errors: dict[str, str] = {}
    results: Results = {}
    try:
        results["error_against_loop"] = relative_error(runs[MANY](), slow[LOOP]())
        results["error_of_frozen"] = relative_error(runs[FLOOR](), _one_by_one(base, inputs, None))
        slow[PEERS] = _by_peft(setup, base, inputs, rank, len(condition))
    except Exception as error:
        errors[PEERS] = describe_error(error)
    try:
        measured = _measured(slow, SLOW_ROUNDS, budget, warm=1)
        measured.errors |= errors
        more = [row for row in measured.rows(reference=ONE) if row["case"] != ONE]
    except OutOfTime as error:
        more = [{"case": name, "error": f"not run: {error}"} for name in (LOOP, PEERS)]
    return results | {"cases": rows + more}


def models_by_kernels(model: nn.Module) -> dict[str, nn.Module]:
    """An adapted model, which takes PyTorch's kernels, and a copy that takes Triton's, if they can run for it.

    Args:
        model: The adapted model.

    Returns:
        The end of the names of the cases, "" or `TRITON` -> model.
    """
    layers = required_adapter(model, "bench").layers.values()
    if unavailable() is not None or not any(isinstance(cast(Any, layer).base, nn.Linear) for layer in layers):
        return {"": model}
    by_triton = copy.deepcopy(model)
    required_adapter(by_triton, "bench").use_kernels("triton")
    return {"": model, TRITON: by_triton}


def runs_by_kernels(
    models: dict[str, nn.Module], inputs: Inputs, condition: Condition
) -> dict[str, Callable[[], Tensor]]:
    """Inference for one tenant and for a tenant in each row, by each kind of kernels.

    Args:
        models: What `models_by_kernels` returns.
        inputs: Keyword arguments of a forward.
        condition: A condition for each row.

    Returns:
        Name of the case -> function that returns the output.
    """
    return {
        case + suffix: partial(run_model, model, inputs, condition=chosen)
        for suffix, model in models.items()
        for case, chosen in ((ONE, condition[0]), (MANY, condition))
    }


def _measured(runs: dict[str, Callable[[], Tensor]], rounds: int, budget: Budget, warm: int = WARM) -> Measurements:
    return measure({name: partial(timed, run) for name, run in runs.items()}, rounds, budget, warm)


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
