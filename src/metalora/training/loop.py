"""The one training loop, on Accelerate: a step is a function of its number, so a resumed run repeats nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora.adapters.adapter import Adapter
from metalora.adapters.resize import resize
from metalora.config import TrainConfig, to_dict
from metalora.training.controllers import Controller, controllers, total_penalty

StepLoss = Callable[[int], Tensor]


def fit(
    model: nn.Module,
    adapter: Adapter | None,
    step_loss: StepLoss,
    config: TrainConfig,
    *,
    extra_module: nn.Module | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train the adapter and what requires a gradient in `extra_module` (a head, the whole model); return all losses.

    step_loss(k) makes its batch from the number k and returns the loss; random numbers inside are seeded by (seed, k),
    so a run that is cut off and resumed from `checkpoint` ends in the same bits. A step of the optimiser takes the mean
    over its n = config.accumulate micro-steps k = step n .. step n + n - 1; schedules, checkpoints and the losses that
    are returned count steps of the optimiser. Controllers (a rank schedule, a rank budget) act after a step, and what
    they add to the loss is in the losses that are returned. The backbone stays in eval mode and frozen. Of several
    processes each makes its own batches, and gradients are averaged. Ctrl-C writes the checkpoint and raises
    KeyboardInterrupt. ValueError: a loss not finite, accumulate below 1, a controller that the adapter does not allow.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=not torch.cuda.is_available())
    model.eval()
    if config.accumulate < 1:
        raise ValueError(f"accumulate is {config.accumulate}, expected at least 1")
    trained = _Trained(adapter, extra_module)
    optimizer = torch.optim.AdamW(trained.groups(config), weight_decay=config.weight_decay)
    scheduler = _schedule(optimizer, config)
    optimizer = accelerator.prepare(optimizer)
    rules = controllers(model, config)
    run = _Run(trained, optimizer, scheduler, checkpoint, seed, config, rules)
    losses = run.resume()
    try:
        with _deferred_interrupt() as stopped:
            for step in range(len(losses), config.steps):
                optimizer.zero_grad()
                losses.append(_backward(step_loss, step, config.accumulate, seed, accelerator, rules))
                _average_gradients(trained.parameters, accelerator.num_processes)
                if config.clip:
                    accelerator.clip_grad_norm_(trained.parameters, config.clip)
                optimizer.step()
                scheduler.step()
                for rule in rules:
                    rule.after(step + 1, optimizer)
                if on_step is not None:
                    on_step(step, losses[-1])
                if stopped:
                    raise KeyboardInterrupt
                if (step + 1) % config.checkpoint_every == 0:
                    run.save(losses)
    except KeyboardInterrupt:
        run.save(losses[: scheduler.last_epoch])
        raise
    if adapter is not None:
        adapter.eval()
    return losses


def _backward(
    step_loss: StepLoss, step: int, micro_steps: int, seed: int, accelerator: Any, rules: Sequence[Controller]
) -> float:
    """Add the gradients of the mean over a step's micro-steps, and return that mean; no graph outlives the call."""
    total = 0.0
    for k in range(step * micro_steps, (step + 1) * micro_steps):
        torch.manual_seed(seed * 1_000_003 + k)
        with accelerator.autocast():
            loss = step_loss(k)
        penalty = total_penalty(rules)
        loss = loss if penalty is None else loss + penalty
        total += _finite(loss, step)
        accelerator.backward(loss / micro_steps)
    return total / micro_steps


class _Trained:
    """What a run trains: an adapter, other parameters by name, or both."""

    def __init__(self, adapter: Adapter | None, extra_module: nn.Module | None):
        self.adapter = adapter
        own = {id(p) for p in adapter.parameters()} if adapter is not None else set()
        named = extra_module.named_parameters() if extra_module is not None else ()
        self.others = {name: p for name, p in named if p.requires_grad and id(p) not in own}
        if adapter is not None:
            adapter.train()
        elif not self.others:
            raise ValueError("nothing to train: there is no adapter, and nothing else requires a gradient")

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*(self.adapter.parameters() if self.adapter is not None else ()), *self.others.values()]

    def groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        groups = []
        if self.adapter is not None:
            groups = self.adapter.parameter_groups(config.lr, config.mapping_lr_ratio, config.factor_lr_ratio)
        return groups + ([{"params": list(self.others.values()), "lr": config.lr}] if self.others else [])

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"others": {name: p.detach() for name, p in self.others.items()}}
        if self.adapter is not None:
            found["rank"] = self.adapter.config.rank
            found["factors"] = {key: value.detach() for key, value in self.adapter.learned.items()}
            found["fresh"] = self.adapter.fresh.state_dict()
            if self.adapter.conditioner is not None:
                found["conditioner"] = self.adapter.conditioner.state_dict()
        return found

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for name, value in state["others"].items():
            self.others[name].copy_(value)
        if self.adapter is not None:
            resize(self.adapter, replace(self.adapter.config, rank=state["rank"]), state["factors"])
            self.adapter.fresh.load_state_dict(state["fresh"])
            if self.adapter.conditioner is not None:
                self.adapter.conditioner.load_state_dict(state["conditioner"])

    def identity(self) -> list[Any]:
        shapes = {name: list(p.shape) for name, p in self.others.items()}
        if self.adapter is None:
            return [shapes]
        return [to_dict(self.adapter.config), self.adapter.num_params(), shapes]


def _average_gradients(parameters: Sequence[nn.Parameter], processes: int) -> None:
    """One all-reduce of the few gradients: no wrapper around the model, and ranks may change between steps."""
    if processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / processes).split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
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
    if config.schedule == "linear":
        rise = max(1, round(config.warmup * config.steps))
        return torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / rise, max(0.0, (config.steps - step) / max(1, config.steps - rise))),
        )
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=config.steps + 1, pct_start=config.warmup
    )


class _Run:
    """The state of a run that a checkpoint holds."""

    def __init__(
        self, trained: _Trained, optimizer, scheduler, path, seed: int, config: TrainConfig, rules: Sequence[Controller]
    ):
        self.trained, self.optimizer, self.scheduler, self.rules = trained, optimizer, scheduler, rules
        self.path = None if path is None else Path(path)
        self.identity = json.dumps([seed, to_dict(config), *trained.identity()])

    def save(self, losses: list[float]) -> None:
        if self.path is None:
            return
        import io

        buffer = io.BytesIO()
        state = {
            "identity": self.identity,
            **self.trained.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "controllers": [rule.state() for rule in self.rules],
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
        self.trained.restore(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for rule, own in zip(self.rules, state["controllers"], strict=True):
            rule.restore(own)
        return state["losses"]
