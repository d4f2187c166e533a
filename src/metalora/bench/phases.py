"""The phases of a training step: forward, backward, and both with the update."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import torch

from metalora.bench.cases import Case
from metalora.bench.device import synchronize
from metalora.bench.timing import interleaved

Phases = dict[str, float]  # phase of a measurement -> its seconds
PHASES = ("forward", "backward", "step")


def training_phases(case: Case) -> Phases:
    """Run a training step.

    Returns:
        The seconds of "forward" (which records the graph), "backward" and "step" (both, and AdamW's update).
    """
    case.model.train()
    synchronize()  # a card works asynchronously: without it a phase would contain the one before
    start = time.perf_counter()
    with case.around():
        loss = case.loss()
        synchronize()
        forward_end = time.perf_counter()
        torch.autograd.backward(loss)
    synchronize()
    backward_end = time.perf_counter()
    case.update()
    synchronize()
    return {
        "forward": forward_end - start,
        "backward": backward_end - forward_end,
        "step": time.perf_counter() - start,
    }


def phases_in_turns(cases: Mapping[str, Case], rounds: int, warm: int = 2) -> dict[str, dict[str, list[float]]]:
    """Run training steps of the cases in turns.

    Args:
        cases: Name -> case.
        rounds: Number of rounds that count.
        warm: Number of rounds before them that do not count.

    Returns:
        Phase -> name -> seconds, one number per round.
    """
    recorded: dict[str, list[Phases]] = {name: [] for name in cases}

    def record(name: str) -> None:
        recorded[name].append(training_phases(cases[name]))

    interleaved({name: partial(record, name) for name in cases}, rounds, warm)
    return {
        phase: {name: [phases[phase] for phases in all_rounds[warm:]] for name, all_rounds in recorded.items()}
        for phase in PHASES
    }
