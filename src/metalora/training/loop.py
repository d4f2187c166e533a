"""The training loop. A step depends only on its number, so that a resumed run repeats nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora._util.allocator import keeping_freed_memory
from metalora._util.process_errors import mean_over_processes
from metalora._util.processes import any_process, done_by_process_0, join_processes
from metalora._util.sharding import check_not_partitioned, is_sharded
from metalora.adapters.adapter import Adapter
from metalora.config import TrainConfig
from metalora.training.checkpoint import RunCheckpoint, base_of_run
from metalora.training.common_start import start_together
from metalora.training.controllers import Controller, controllers, total_penalty
from metalora.training.gradients import average_gradients, finite_loss
from metalora.training.interrupt import deferred_interrupt
from metalora.training.parameters import TrainedParameters
from metalora.training.parts import parts_of_process
from metalora.training.precision import Precision
from metalora.training.schedule import advance, learning_rate_schedule

StepLoss = Callable[[int], Tensor]
SEED_STRIDE = 1_000_003  # a prime: runs with neighbouring seeds share no random numbers


def fit(
    model: nn.Module,
    adapter: Adapter | None,
    step_loss: StepLoss,
    config: TrainConfig,
    *,
    extra_module: nn.Module | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    data: str | None = None,
    on_step: Callable[[int, float], bool | None] | None = None,
) -> list[float]:
    """Train an adapter, and whatever else requires a gradient in `extra_module`.

    The backbone stays frozen and in evaluation mode. A step of the optimiser uses the mean gradient of n parts, which
    are batches k = step·n, ..., step·n + n - 1; n is config.accumulate times the number of processes. Controllers (a
    rank schedule, a rank budget, two-site training) act after a step.

    Several processes of one torch.distributed group train together, whoever has made the group: each takes every P-th
    part, and losses and gradients are averaged. They start from the numbers of process 0 and end with the same bits,
    as one process that accumulates n parts does up to rounding. What stops one of them after a step (Ctrl-C,
    `on_step`) or with an error in `step_loss` stops all. The checkpoint is that of process 0. Processes that are not
    to train together must not be in one group.

    Args:
        model: The model to train, with or without an adapter.
        adapter: The adapter of the model; None trains `extra_module` alone.
        step_loss: Makes the batch of part k and returns its loss, a scalar. Random numbers inside are seeded by
            (seed, k), so that an interrupted and resumed run ends in the same bits as an uninterrupted one.
        config: The optimiser, its schedule and the controllers. All numbers of steps are steps of the optimiser.
        extra_module: A further module whose parameters are trained, such as a head or the model itself.
        seed: Seed of the random numbers of the run.
        checkpoint: A file for the state of the run. If it exists, the run continues from it. It is written every
            `config.checkpoint_every` steps and at Ctrl-C or SIGTERM. Another number of processes may continue from it
            if n is the same.
        data: A digest of what the run is trained on; a checkpoint that names another one is refused.
        on_step: Called after every step with its number, from 0, and its loss; True ends the training.

    Returns:
        The loss of every step, the mean over its parts, including the penalties of the controllers.

    Raises:
        ValueError: A loss or a gradient is not finite, `config.accumulate` is below 1, the adapter does not allow a
            controller, nothing requires a gradient, or the checkpoint is damaged, of another run, of another number of
            parts, of other data or of another base. Of several processes also: they do not start from the same
            configuration, adapter and base, or `step_loss` raised an error in one of them.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the step is complete and the checkpoint is written.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> losses = fit(model, adapter, lambda k: model(torch.ones(1, 4)).square().sum(), TrainConfig(steps=20))
        >>> len(losses), losses[-1] < losses[0]
        (20, True)
    """
    check_not_partitioned(model, "fit")
    join_processes()
    model.eval()  # `TrainedParameters` puts the adapter alone into training mode
    trained = TrainedParameters(adapter, extra_module)
    start_together(model, adapter, extra_module, trained, config)
    optimizer = torch.optim.AdamW(trained.groups(config), weight_decay=config.weight_decay)
    scheduler = learning_rate_schedule(optimizer, config)
    rules = controllers(model, config)
    base = functools.partial(base_of_run, model, adapter, extra_module)
    device = trained.parameters[0].device
    precision = Precision(config.mixed_precision, device)
    run = RunCheckpoint(trained, optimizer, scheduler, precision, rules, checkpoint, seed, config, base, data)
    losses = run.resume()
    alone = not is_sharded(model)
    try:
        with deferred_interrupt() as interrupted, keeping_freed_memory():
            for step in range(len(losses), config.steps):
                optimizer.zero_grad()
                backward = functools.partial(_backward, step_loss, step, config, seed, precision, rules, trained)
                losses.append(mean_over_processes(backward, device, alone=alone))
                average_gradients(trained.parameters)
                precision.step(optimizer, trained.parameters, config.clip)
                advance(scheduler)
                for rule in rules:  # after the update, since a sweep changes the shapes of parameters
                    rule.after(step + 1, optimizer)
                stop = on_step is not None and bool(on_step(step, losses[-1]))
                stop, cut_off = any_process([stop, interrupted()], device)
                if cut_off:
                    raise KeyboardInterrupt
                if stop:
                    break
                if (step + 1) % config.checkpoint_every == 0:
                    done_by_process_0(functools.partial(run.save, losses))
    except KeyboardInterrupt:
        complete_steps = scheduler.last_epoch  # a step that was interrupted has a loss already, but no update
        run.save(losses[:complete_steps])
        raise
    if adapter is not None:
        adapter.eval()
    return losses


def _backward(
    step_loss: StepLoss,
    step: int,
    config: TrainConfig,
    seed: int,
    precision: Precision,
    rules: Sequence[Controller],
    trained: TrainedParameters,
) -> float:
    """Add the gradients of the mean loss over the parts of a step that this process takes, and return that mean."""
    losses = []
    for k in parts_of_process(step, config):
        torch.manual_seed(seed * SEED_STRIDE + k)  # by the number of the part: a resumed run draws the same
        with precision.autocast():
            loss = step_loss(k)
        penalty = total_penalty(rules)
        if penalty is not None:
            loss = loss + penalty
        precision.backward(loss / config.accumulate)
        losses.append(loss.detach())
    # Read when all work is on its way: a GPU is waited for once a step.
    return finite_loss(losses, () if precision.scales else trained.parameters, step)
