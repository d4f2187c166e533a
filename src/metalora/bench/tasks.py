"""A batch of many tasks next to a batch of one: MetaTT-(4+1)D with a task id per example, PEFT with a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.attach import attach
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig

METHOD, TARGETS, BATCH, TOKENS = "metatt-4+1d", ("query", "value"), 64, 32
ENCODER = dict(hidden_size=384, num_attention_heads=12, intermediate_size=1536)  # the shape of MiniLM


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


def encoder(layers: int = 6) -> nn.Module:
    """Build a random encoder of MiniLM's shape, with the given number of layers, in eval mode."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**ENCODER | {"num_hidden_layers": layers})
    return cast(nn.Module, BertModel(config, add_pooling_layer=False).eval())


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
    from peft import LoraConfig, get_peft_model

    names = [f"task{number}" for number in range(batch)]
    config = LoraConfig(r=rank, target_modules=list(TARGETS), init_lora_weights=False)
    model: Any = get_peft_model(cast(Any, encoder()), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.eval()  # PEFT takes `adapter_names` in eval mode only

    @torch.no_grad()
    def forward() -> Any:
        return model(**inputs, adapter_names=names)

    return forward
