"""One run from its configuration to its row: load, attach, train, score. The same for every suite."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metalora._util.processes import process_0_first
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.bench.store import finished_row
from metalora.config import TrainConfig
from metalora.io.adapter_file import round_as_saved
from metalora.training.loop import fit
from metalora.training.parts import accumulated_of
from metalora_papers.content import content_of
from metalora_papers.metalora.backbones import tensors_hash
from metalora_papers.registry import open_suite
from metalora_papers.rows import Row
from metalora_papers.runs import Run
from metalora_papers.suite import Suite, count_trained

UNUSED_CONDITION = 0.02  # a condition of another task that costs less accuracy than this is not used
OnStep = Callable[[int, float], None]


class Outcome(NamedTuple):
    """What a run leaves: its row, the adapter (still attached to its model), and modules that were trained with it."""

    row: Row
    adapter: Adapter | None
    extra_module: nn.Module | None


def execute(
    config: Run, *, checkpoint: Path | None = None, on_step: OnStep | None = None, suite: Suite | None = None
) -> Outcome:
    """Train and score one run.

    Args:
        config: The configuration. Without an adapter, only heads are trained, or nothing.
        checkpoint: File from which an interrupted run continues.
        on_step: Called with the number of a step and its loss.
        suite: The suite if it is loaded already.

    Returns:
        The row, the adapter and the extra modules.

    Raises:
        ValueError: Settings that cannot work.
        RuntimeError: Training changed a buffer of the frozen model, such as a running mean of a BatchNorm.
    """
    start = time.monotonic()
    # A row is the same whoever makes it: several processes share the batches that its configuration accumulates.
    train = replace(config.train, accumulate=accumulated_of(config.train.accumulate))
    content = content_of(config)  # before the files are read
    if suite is None:
        with process_0_first():  # which keeps a backbone that it trains
            suite = open_suite(config)
    buffers = base_buffers_hash(suite.model)
    adapter = None
    if config.adapter is not None:
        adapter = attach(suite.model, config.adapter, example=suite.example)
    suite.prepare(adapter, training=True)
    losses = _train(suite, adapter, train, config.seed, checkpoint, on_step)
    if adapter is not None:
        round_as_saved(adapter, getattr(torch, config.train.store))
        if base_buffers_hash(suite.model) != buffers:
            raise RuntimeError("training changed a buffer of the frozen backbone")
    results = _results(suite, adapter, losses)
    _warn_if_condition_is_unused(config.method, results)
    return Outcome(finished_row(config, results, start, content), adapter, suite.extra_modules())


def _train(
    suite: Suite,
    adapter: Adapter | None,
    train: TrainConfig,
    seed: int,
    checkpoint: Path | None,
    on_step: OnStep | None,
) -> list[float]:
    """Train the adapter and whatever else requires a gradient; the losses, none if there is nothing to train."""
    learns = any(parameter.requires_grad for parameter in suite.trained_model.parameters())
    if adapter is None and not learns:
        return []

    def after_step(step: int, loss: float) -> None:
        suite.after_step(adapter, step, loss)
        if on_step is not None:
            on_step(step, loss)

    step_loss: Callable[[int], Tensor] = partial(suite.train_step, adapter)
    return fit(
        suite.model,
        adapter,
        step_loss,
        train,
        extra_module=suite.trained_model,
        seed=seed,
        checkpoint=checkpoint,
        on_step=after_step,
    )


def _results(suite: Suite, adapter: Adapter | None, losses: list[float]) -> dict[str, Any]:
    last = losses[-suite.averaged_losses :]
    results = suite.evaluate(adapter)
    results["num_params"] = count_trained(suite.model) if adapter is None else adapter.num_params()
    results["loss"] = fmean(last) if last else None
    return results | suite.training_results(adapter)


def base_buffers_hash(model: nn.Module) -> str:
    """Return the sha256 of the saved buffers of the frozen model, whether or not an adapter is attached.

    Buffers that are not saved, such as the rotary frequencies of a language model, may be computed anew at any time
    and are left out.
    """
    saved = model.state_dict().keys()
    base = {
        name.replace(".base.", "."): buffer
        for name, buffer in model.named_buffers()
        if name in saved and ".adapter." not in f".{name}."
    }
    return tensors_hash(base.items())


def _warn_if_condition_is_unused(method: str, results: dict[str, Any]) -> None:
    """Add "condition_used" to results that hold the accuracy with a task's own condition and with another's."""
    own, other = results.get("own_condition"), results.get("other_condition")
    if own is None or other is None:
        return
    results["condition_used"] = own - other > UNUSED_CONDITION
    if not results["condition_used"]:
        warnings.warn(
            f"{method}: the condition is ignored: accuracy {own:.3f} with its own, {other:.3f} with another's",
            stacklevel=3,
        )
