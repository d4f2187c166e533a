"""A batch of many tasks beside a batch of one: MetaTT-(4+1)D with a task id for every example, PEFT with a name."""

from collections.abc import Callable

import torch
from torch import nn

from metalora.adapters.attach import attach
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, ConditionConfig

METHOD, TARGETS, BATCH, TOKENS = "metatt-4+1d", ("query", "value"), 64, 32
ENCODER = dict(hidden_size=384, num_attention_heads=12, intermediate_size=1536)  # MiniLM's shape


def tasks_in_a_batch(rounds: int = 11, batch: int = BATCH, tokens: int = TOKENS, rank: int = 8) -> list[Ratio]:
    """`batch` examples of as many tasks against `batch` examples of one task: forward, and a step of training.

    Both batches name a task for every example. A batch that names one task once (`task_ids=0`) may be merged into the
    weights on the way, and is there as a third case; PEFT's forward with a LoRA of the same rank for every example
    (`adapter_names`) is a fourth.
    """
    torch.manual_seed(0)
    model = encoder()
    condition = ConditionConfig(scope="constant")
    config = AdapterConfig(METHOD, rank, alpha=4.0, targets=TARGETS, tasks=batch, condition=condition)
    adapter = attach(model, config)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.1)
    inputs = {"input_ids": torch.randint(0, 30_000, (batch, tokens)), "attention_mask": torch.ones(batch, tokens)}
    ids = {"many tasks": torch.arange(batch), "one task": torch.zeros(batch, dtype=torch.long), "one id": 0}
    found = []
    for what, run in (("forward", _forward), ("training step", _step)):
        cases = {f"{what}, {name}": run(model, inputs, task) for name, task in ids.items()}
        if what == "forward":
            cases["forward, peft: a LoRA each"] = _peft(inputs, batch, rank)
        times = interleaved(cases, rounds)
        reference = f"{what}, one task"
        found += [ratio(times, name, reference) for name in cases if name != reference]
    return found


def encoder(layers: int = 6) -> nn.Module:
    """A random encoder of MiniLM's shape, or of another depth, in eval mode."""
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**ENCODER | {"num_hidden_layers": layers}), add_pooling_layer=False).eval()


def _peft(inputs: dict, batch: int, rank: int) -> Callable[[], object]:
    from peft import LoraConfig, get_peft_model

    names = [f"task{k}" for k in range(batch)]
    config = LoraConfig(r=rank, target_modules=list(TARGETS), init_lora_weights=False)
    model = get_peft_model(encoder(), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    model.eval()
    return torch.no_grad()(lambda: model(**inputs, adapter_names=names))


def _forward(model: nn.Module, inputs: dict, task: torch.Tensor | int) -> Callable[[], object]:
    return torch.no_grad()(lambda: model(**inputs, task_ids=task))


def _step(model: nn.Module, inputs: dict, task: torch.Tensor | int) -> Callable[[], object]:
    return lambda: model(**inputs, task_ids=task).last_hidden_state.square().mean().backward()
