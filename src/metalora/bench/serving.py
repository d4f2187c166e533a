"""A batch of many tenants next to a batch of one tenant: generated conditions, a loop, and PEFT's LoRAs by name."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.adapters.conditioning.condition_table import ConditionTable
from metalora.adapters.targets import find_targets
from metalora.bench.cases import Inputs, build_model
from metalora.bench.config import BenchConfig
from metalora.bench.device import synchronize
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig

METHOD, FEATURES = "metalora-cp", 16
ONE, TABLE, LOOP = "one tenant", "a tenant each, from a table", "a loop over the tenants"
PEFT, FROZEN = "peft: a LoRA each", "frozen model"

Cases = dict[str, Callable[[], Any]]


def serving(config: BenchConfig) -> list[dict[str, Any]]:
    """Time a forward of `config.batch` rows, each of another tenant, next to the same rows of one tenant.

    Returns:
        A row for each case: its wall time and its time on the CPU as ratios to those of one tenant, with their
        quartiles and their medians in seconds.
    """
    cases = serving_cases(config)
    on_cpu: dict[str, list[float]] = {name: [] for name in cases}
    timed = {name: partial(_run_on_cpu, run, on_cpu[name]) for name, run in cases.items()}
    wall = interleaved(timed, config.rounds)
    of_rounds = {name: seconds[-config.rounds :] for name, seconds in on_cpu.items()}  # without the warm-up
    return [_row(name, ratio(wall, name, ONE), ratio(of_rounds, name, ONE)) for name in cases]


def serving_cases(config: BenchConfig) -> Cases:
    """Return the forwards that are compared; all compute the rows of one batch.

    Raises:
        ImportError: PEFT is not installed.
    """
    torch.manual_seed(0)
    model, inputs = build_model(config)
    # PEFT first: it must not see the layers of this library, and a copy of a model keeps no reference to its origin.
    cases: Cases = {PEFT: _peft(copy.deepcopy(model).eval(), inputs, config), FROZEN: _forward(model.eval(), inputs)}
    adapted = copy.deepcopy(model)
    adapter = _adapter(adapted, config)
    support = torch.randn(config.batch, 8, FEATURES, device=next(iter(inputs.values())).device)
    conditions = [adapter.condition(features).detach() for features in support]
    table, numbers = ConditionTable.of(conditions), range(config.batch)
    rows = [{name: tensor[k : k + 1] for name, tensor in inputs.items()} for k in numbers]

    def from_table() -> Any:
        return adapted(**inputs, condition=table.take(numbers))

    def loop() -> list[Any]:
        return [adapted(**row, condition=condition) for row, condition in zip(rows, conditions, strict=True)]

    cases |= {ONE: partial(adapted, **inputs, condition=conditions[0]), TABLE: from_table, LOOP: loop}
    return {name: torch.no_grad()(run) for name, run in cases.items()}


def _adapter(model: nn.Module, config: BenchConfig) -> Adapter:
    """Attach an adapter whose core a support set makes, with numbers as after training."""
    condition = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=FEATURES)
    adapter = attach(model, AdapterConfig(METHOD, config.rank, targets=config.targets, condition=condition))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1)
    model.eval()
    return adapter


def _peft(model: nn.Module, inputs: Inputs, config: BenchConfig) -> Callable[[], Any]:
    """Return a forward of PEFT with a LoRA for each row, on the same targets, at the same rank."""
    from peft import LoraConfig, get_peft_model

    names = [f"tenant{number}" for number in range(config.batch)]
    paths = [target.path for target in find_targets(model, config.targets)]
    lora = LoraConfig(r=config.rank, target_modules=paths, init_lora_weights=False)
    wrapped: Any = get_peft_model(cast(Any, model), lora, adapter_name=names[0])
    for name in names[1:]:
        wrapped.add_adapter(name, lora)
    wrapped.eval()  # PEFT takes `adapter_names` in eval mode only
    return partial(wrapped, **inputs, adapter_names=names)


def _forward(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    return partial(model, **inputs)


def _run_on_cpu(run: Callable[[], Any], seconds: list[float]) -> None:
    start = time.process_time()
    run()
    synchronize()
    seconds.append(time.process_time() - start)


def _row(name: str, wall: Ratio, on_cpu: Ratio) -> dict[str, Any]:
    row: dict[str, Any] = {"case": name, "reference": ONE}
    measured: Mapping[str, Ratio] = {"cpu": on_cpu, "wall": wall}
    for what, times in measured.items():
        row |= {what: times.median, f"{what}_low": times.low, f"{what}_high": times.high}
        row[f"{what}_seconds"] = times.seconds
    return row
