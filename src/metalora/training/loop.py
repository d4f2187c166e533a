"""The one training loop, on Accelerate: a step is a function of its number, so a resumed run repeats nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.sweep import resize
from metalora.config import TrainConfig, to_dict
from metalora.files import write_atomically
from metalora.training.rank_schedule import RankSchedule

StepLoss = Callable[[int], Tensor]


def fit(
    model: nn.Module,
    adapter: Adapter,
    step_loss: StepLoss,
    config: TrainConfig,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train the adapter and return the loss of every step.

    step_loss(step) makes its batch from the step's number and returns the loss; random numbers inside are seeded by
    (seed, step), so a run that is cut off and resumed from `checkpoint` ends in the same bits. The backbone stays in
    eval mode and frozen. Of several processes each makes its own batches, and gradients are averaged. Ctrl-C writes the
    checkpoint and raises KeyboardInterrupt. ValueError: a loss not finite.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    model.eval()
    adapter.train()
    groups = adapter.parameter_groups(config.lr, config.mapping_lr_ratio)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    scheduler = _schedule(optimizer, config)
    optimizer = accelerator.prepare(optimizer)
    ranks = RankSchedule(model, config.rank_schedule) if config.rank_schedule is not None else None
    run = _Run(adapter, optimizer, scheduler, checkpoint, seed, config)
    losses = run.resume()
    try:
        with _deferred_interrupt() as stopped:
            for step in range(len(losses), config.steps):
                torch.manual_seed(seed * 1_000_003 + step)
                with accelerator.autocast():
                    loss = step_loss(step)
                losses.append(_finite(loss, step))
                optimizer.zero_grad()
                accelerator.backward(loss)
                del loss  # a graph that is alive would keep the shapes that a sweep changes
                _average_gradients(adapter, accelerator.num_processes)
                if config.clip:
                    accelerator.clip_grad_norm_(adapter.parameters(), config.clip)
                optimizer.step()
                scheduler.step()
                if ranks is not None:
                    ranks.after(step + 1, optimizer)
                if on_step is not None:
                    on_step(step, losses[-1])
                if stopped:
                    raise KeyboardInterrupt
                if (step + 1) % config.checkpoint_every == 0:
                    run.save(losses)
    except KeyboardInterrupt:
        run.save(losses[: scheduler.last_epoch])
        raise
    adapter.eval()
    return losses


def _average_gradients(adapter: Adapter, processes: int) -> None:
    """One all-reduce of an adapter's few gradients: no wrapper around the model, and ranks may change between steps."""
    if processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in adapter.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / processes).split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(adapter.parameters(), parts, strict=True):
        parameter.grad = part.view_as(parameter)


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[list[int]]:
    """Let Ctrl-C wait for the end of a step, so that the factors, the optimiser and the schedule agree."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: object) -> None:
        if stopped:  # asked twice: a step that hangs is not waited for
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)


def _finite(loss: Tensor, step: int) -> float:
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()).all():
        raise ValueError(f"step {step}: the loss is {value}; lower the learning rate or check the data")
    return value


def _schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> Any:
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=config.steps + 1, pct_start=config.warmup
    )


class _Run:
    """The state of a run that a checkpoint holds."""

    def __init__(self, adapter, optimizer, scheduler, path, seed: int, config: TrainConfig):
        self.adapter, self.optimizer, self.scheduler = adapter, optimizer, scheduler
        self.path = None if path is None else Path(path)
        self.identity = json.dumps([seed, to_dict(config), to_dict(adapter.config), adapter.num_params()])

    def save(self, losses: list[float]) -> None:
        if self.path is None:
            return
        import io

        buffer = io.BytesIO()
        state = {
            "identity": self.identity,
            "rank": self.adapter.config.rank,
            "factors": {key: value.detach() for key, value in self.adapter.factors.items()},
            "conditioner": self.adapter.conditioner.state_dict() if self.adapter.conditioner is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "losses": losses,
            "time": time.time(),
        }
        torch.save(state, buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, buffer.getvalue())

    def resume(self) -> list[float]:
        if self.path is None or not self.path.exists():
            return []
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{self.path}: not a whole checkpoint ({type(error).__name__}); delete it to restart"
            ) from None
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            raise ValueError(f"{self.path}: made by another run (configuration or seed differ); delete it to restart")
        resize(self.adapter, state["rank"], state["factors"])
        if state["conditioner"] is not None:
            self.adapter.conditioner.load_state_dict(state["conditioner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return state["losses"]
