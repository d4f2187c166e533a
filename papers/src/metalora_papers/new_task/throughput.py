"""64 tasks in one training against 64 trainings of PEFT, one after another: tasks per second."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.processes import default_device
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.bench.cases import adapt_by_peft
from metalora.bench.device import synchronize
from metalora.bench.encoder import encoder
from metalora.bench.timing import interleaved, quartiles
from metalora.config import AdapterConfig, ConditionConfig
from metalora.learner.features import to_device
from metalora_papers.new_task.config import NewTaskRunConfig
from metalora_papers.new_task.suite import MeasuringSuite
from metalora_papers.suite import device_of

TARGETS = ("query", "value")
TASKS, PEFT_RUNS = 64, 4  # 64 trainings of PEFT are sixteen times four of them
EXAMPLES, TOKENS = 4, 16  # of each task in a step
ROUNDS = 3
LAYERS = 6
RATE = 1e-3
ONE_RUN, MANY_RUNS = "64 tasks in one training", "64 trainings of PEFT"


class ThroughputSuite(MeasuringSuite):
    """The throughput on an encoder of MiniLM's shape, with random weights.

    Args:
        run: Rank, steps and seed.
        layers: Layers of the encoder.
        tasks: Tasks of the one training.
    """

    def __init__(self, run: NewTaskRunConfig, layers: int = LAYERS, tasks: int = TASKS):
        super().__init__(nn.Module(), run)
        self.layers, self.count = layers, tasks

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return tasks per second of both, and the ratio with its quartiles over interleaved rounds."""
        runs = min(PEFT_RUNS, self.count)
        times = interleaved(
            {ONE_RUN: self._one_training, MANY_RUNS: self._trainings_of_peft},
            ROUNDS,
            warm=1,
            fresh=lambda: [encoder(self.layers).to(default_device()) for _ in range(runs)],
        )
        rates = {
            ONE_RUN: [self.count / seconds for seconds in times[ONE_RUN]],
            MANY_RUNS: [runs / seconds for seconds in times[MANY_RUNS]],
        }
        ratios = [ours / theirs for ours, theirs in zip(rates[ONE_RUN], rates[MANY_RUNS], strict=True)]
        low, high = quartiles(ratios)
        return {
            "tasks": {name: {"tasks_per_second": statistics.median(values)} for name, values in rates.items()},
            "ratio": {"median": statistics.median(ratios), "low": low, "high": high},
            "mean": statistics.median(ratios),
            "peft_runs": runs,
        }

    def _one_training(self, models: Sequence[nn.Module]) -> None:
        """Attach MetaTT-(4+1)D with a core for each task to the first model, and train all tasks at once."""
        model = models[0]
        config = AdapterConfig(
            "metatt-4+1d",
            self.run.rank,
            alpha=4.0,
            targets=TARGETS,
            tasks=self.count,
            condition=ConditionConfig(scope="constant"),
        )
        parameters = list(attach(model, config).parameters())
        tasks = torch.arange(self.count, device=device_of(model)).repeat_interleave(EXAMPLES)
        self._train(functools.partial(model, task_ids=tasks), parameters, self.count)

    def _trainings_of_peft(self, models: Sequence[nn.Module]) -> None:
        """Train a LoRA of PEFT in each model, one after another."""
        for model in models:
            adapted = adapt_by_peft(model, "lora", self.run.rank, list(TARGETS))
            parameters = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
            self._train(adapted, parameters, 1)

    def _train(self, forward: Callable[..., Any], parameters: Sequence[Tensor], tasks: int) -> None:
        optimiser = torch.optim.AdamW(parameters, lr=RATE)
        shape, device = (tasks * EXAMPLES, TOKENS), parameters[0].device
        for _ in range(self.run.steps):
            inputs = {"input_ids": torch.randint(0, 30_000, shape), "attention_mask": torch.ones(shape)}
            optimiser.zero_grad()
            forward(**to_device(inputs, device)).last_hidden_state.square().mean().backward()
            optimiser.step()
        synchronize()
