"""A batch of many tasks beside a batch of one: MetaTT-(4+1)D with a task id for every example."""

from collections.abc import Callable

import torch
from torch import nn

from metalora.adapters.attach import attach
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig

ENCODER = dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)  # MiniLM's shape


def tasks_in_a_batch(rounds: int = 11, batch: int = 64, tokens: int = 32, rank: int = 8) -> list[Ratio]:
    """`batch` examples of as many tasks against `batch` examples of one task: forward, and a step of training.

    Both batches name a task for every example. A batch that names one task once (`task_ids=0`) may be merged into the
    weights on the way, and is there as a third case.
    """
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(**ENCODER), add_pooling_layer=False).eval()
    condition = ConditionConfig(scope="constant")
    config = AdapterConfig("metatt-4+1d", rank, alpha=4.0, targets="query,value", tasks=batch, condition=condition)
    adapter = attach(model, config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1)
    inputs = {"input_ids": torch.randint(0, 30_000, (batch, tokens)), "attention_mask": torch.ones(batch, tokens)}
    ids = {"many tasks": torch.arange(batch), "one task": torch.zeros(batch, dtype=torch.long), "one id": 0}
    found = []
    for what, run in (("forward", _forward), ("training step", _step)):
        cases = {f"{what}, {name}": run(model, inputs, task) for name, task in ids.items()}
        times = interleaved(cases, rounds)
        reference = f"{what}, one task"
        found += [ratio(times, name, reference) for name in cases if name != reference]
    return found


def _forward(model: nn.Module, inputs: dict, task: torch.Tensor | int) -> Callable[[], object]:
    return torch.no_grad()(lambda: model(**inputs, task_ids=task))


def _step(model: nn.Module, inputs: dict, task: torch.Tensor | int) -> Callable[[], object]:
    return lambda: model(**inputs, task_ids=task).last_hidden_state.square().mean().backward()
