"""A batch of many tasks next to a batch of one: MetaTT-(4+1)D with a task id per example, PEFT with a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.attach import attach
from metalora.bench.cases import adapt_by_many_loras
from metalora.bench.encoder import encoder
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig

METHOD, TARGETS, BATCH, TOKENS = "metatt-4+1d", ("query", "value"), 64, 32


def tasks_in_a_batch(rounds: int = 11, batch: int = BATCH, tokens: int = TOKENS, rank: int = 8) -> list[Ratio]:
    """Compare `batch` examples of as many tasks with `batch` examples of one task: forward, and a training step.

    Both batches name a task for each example. A batch that names one task once (`task_ids=0`) may be merged into the
    weights during the forward; it is a third case. PEFT's forward with a LoRA of the same rank for each example
    (`adapter_names`) is a fourth.
    """
    torch.manual_seed(0)
    model = encoder()
    config = AdapterConfig(
        METHOD, rank, alpha=4.0, targets=TARGETS, tasks=batch, condition=ConditionConfig(scope="constant")
    )
    adapter = attach(model, config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1)  # as after training: the update of every task is another one
    inputs = {"input_ids": torch.randint(0, 30_000, (batch, tokens)), "attention_mask": torch.ones(batch, tokens)}
    task_ids: dict[str, Tensor | int] = {
        "many tasks": torch.arange(batch),
        "one task": torch.zeros(batch, dtype=torch.long),
        "one id": 0,
    }
    forwards = {f"forward, {name}": _forward(model, inputs, ids) for name, ids in task_ids.items()}
    forwards["forward, peft: a LoRA each"] = _forward_by_peft(inputs, batch, rank)
    steps = {f"training step, {name}": _step(model, inputs, ids) for name, ids in task_ids.items()}
    return [
        *_ratios(forwards, "forward, one task", rounds),
        *_ratios(steps, "training step, one task", rounds),
    ]


def _ratios(cases: dict[str, Callable[[], object]], reference: str, rounds: int) -> list[Ratio]:
    times = interleaved(cases, rounds)
    return [ratio(times, name, reference) for name in cases if name != reference]


def _forward(model: nn.Module, inputs: dict[str, Tensor], task_ids: Tensor | int) -> Callable[[], object]:
    @torch.no_grad()
    def forward() -> Any:
        return model(**inputs, task_ids=task_ids)

    return forward


def _step(model: nn.Module, inputs: dict[str, Tensor], task_ids: Tensor | int) -> Callable[[], object]:
    def step() -> None:
        output = model(**inputs, task_ids=task_ids).last_hidden_state
        torch.autograd.backward(output.square().mean())

    return step


def _forward_by_peft(inputs: dict[str, Tensor], batch: int, rank: int) -> Callable[[], object]:
    names = [f"task{number}" for number in range(batch)]
    model = adapt_by_many_loras(encoder(), list(TARGETS), rank, names)

    @torch.no_grad()
    def forward() -> Any:
        return model(**inputs, adapter_names=names)

    return forward
