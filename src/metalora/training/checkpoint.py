"""The checkpoint of a run: everything that the next step depends on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from metalora._util.processes import done_by_process_0, process_index
from metalora.adapters.adapter import Adapter
from metalora.config import TrainConfig, to_dict
from metalora.io.base_samples import check_samples, sample_base, trained_with
from metalora.io.condition_file import extractor_digest
from metalora.training.controllers import Controller
from metalora.training.parameters import TrainedParameters
from metalora.training.parts import parts_per_step
from metalora.training.state_file import read_state, write_state


class Stateful(Protocol):
    """An object with a state that can be saved, such as an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state that `state_dict` returned."""


def base_of_run(model: nn.Module, adapter: Adapter | None, extra_module: nn.Module | None) -> dict[str, Any]:
    """Return the digests of what a run does not train: of the frozen base, and of the extractor.

    Example:
        >>> sorted(base_of_run(nn.Linear(2, 2), None, None))
        ['extractor', 'left_out', 'rest', 'weights']
    """
    targets = () if adapter is None else adapter.targets
    extractor = None if adapter is None else extractor_digest(adapter)
    return sample_base(model, targets, trained_with(model, extra_module)) | {"extractor": extractor}


class RunCheckpoint:
    """The file that holds the state of a run, and the objects whose state it is.

    Args:
        trained: The parameters.
        optimizer: The optimiser.
        scheduler: The schedule of the learning rate.
        precision: The precision, whose scale of the loss changes.
        rules: The controllers.
        path: The file; None saves nothing.
        seed: The seed of the run.
        config: The configuration of the run.
        base: What `sample_base` says of the base of the run; it is not asked for without a file.
        data: A digest of what the run is trained on, if it is known.
    """

    def __init__(
        self,
        trained: TrainedParameters,
        optimizer: Stateful,
        scheduler: Stateful,
        precision: Stateful,
        rules: Sequence[Controller],
        path: str | Path | None,
        seed: int,
        config: TrainConfig,
        base: Callable[[], dict[str, Any]],
        data: str | None = None,
    ):
        self.trained = trained
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.precision = precision
        self.rules = rules
        self.data = data
        self.path = None if path is None else Path(path)
        self.base = {} if path is None else base()
        # Before `resume`, so that the shapes are those at the start of the run, whatever ranks were lowered since.
        described = to_dict(config)
        del described["accumulate"]  # with fewer processes, each accumulates more
        self.identity = json.dumps([seed, described, *trained.identity()])
        self.parts = parts_per_step(config)

    def save(self, losses: list[float]) -> None:
        """Write the checkpoint after the steps that have these losses; an interruption keeps the old file.

        Raises:
            ValueError: The file could not be written.
        """
        if self.path is None or process_index() > 0:  # all processes have the same state, and one writes it
            return
        state = {
            "identity": self.identity,
            "parts": self.parts,
            "base": self.base,
            "data": self.data,
            **self.trained.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "precision": self.precision.state_dict(),
            "controllers": [rule.state() for rule in self.rules],
            "losses": losses,
            "time": time.time(),
        }
        write_state(self.path, state, "the run has no checkpoint")

    def resume(self) -> list[float]:
        """Restore the run from its file, if there is one. Of several processes the first reads it for all.

        Returns:
            The losses of the steps that are done; empty without a file.

        Raises:
            ValueError: The file is damaged, or it belongs to a run with another configuration, seed or number of parts,
                or on other data or another base.
        """
        state = done_by_process_0(self._read)
        if state is None:
            return []
        self.trained.restore(state)  # first, because the state of the optimiser has the shapes of the parameters
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.precision.load_state_dict(state.get("precision", {}))  # checkpoints of before have none
        for rule, rule_state in zip(self.rules, state["controllers"], strict=True):
            rule.restore(rule_state)
        losses: list[float] = state["losses"]
        return losses

    def _read(self) -> dict[str, Any] | None:
        """Return the state in the file; None if there is no file."""
        path = self.path
        if path is None or not path.exists():
            return None
        state = read_state(path)
        if state.get("identity") != self.identity:
            raise ValueError(f"{path}: made by another run (configuration or seed differ); delete it to restart")
        if state["parts"] != self.parts:
            raise ValueError(
                f"{path}: made with {state['parts']} batches a step (processes times accumulate), and this run has "
                f"{self.parts}; change accumulate or the number of processes, or delete it to restart"
            )
        if None not in (self.data, state["data"]) and state["data"] != self.data:
            raise ValueError(f"{path}: made on other data (inputs or labels differ); delete it to restart")
        check_samples(state["base"], self.base, path, "; delete it to restart")
        return state
