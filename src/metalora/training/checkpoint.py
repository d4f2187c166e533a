"""The checkpoint of a run: everything that the next step depends on."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from metalora._util.files import errors_for_users, write_atomically
from metalora.config import TrainConfig, to_dict
from metalora.training.controllers import Controller
from metalora.training.parameters import TrainedParameters
from metalora.training.processes import process_index


class Stateful(Protocol):
    """An object with a state that can be saved, such as an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take a state that `state_dict` returned."""


class RunCheckpoint:
    """The file that holds the state of a run, and the objects whose state it is.

    Args:
        trained: The parameters.
        optimizer: The optimiser.
        scheduler: The schedule of the learning rate.
        rules: The controllers.
        path: The file; None saves nothing.
        seed: The seed of the run.
        config: The configuration of the run.
    """

    def __init__(
        self,
        trained: TrainedParameters,
        optimizer: Stateful,
        scheduler: Stateful,
        rules: Sequence[Controller],
        path: str | Path | None,
        seed: int,
        config: TrainConfig,
    ):
        self.trained = trained
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.rules = rules
        self.path = None if path is None else Path(path)
        # Before `resume`, so that the shapes are those at the start of the run, whatever ranks were lowered since.
        self.identity = json.dumps([seed, to_dict(config), *trained.identity()])

    def save(self, losses: list[float]) -> None:
        """Write the checkpoint after the steps that have these losses; an interruption keeps the old file.

        Raises:
            ValueError: The file could not be written.
        """
        if self.path is None or process_index() > 0:  # all processes have the same state, and one writes it
            return
        state = {
            "identity": self.identity,
            **self.trained.state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "controllers": [rule.state() for rule in self.rules],
            "losses": losses,
            "time": time.time(),
        }
        buffer = io.BytesIO()  # in memory first: a full disk must not leave half a checkpoint
        torch.save(state, buffer)
        with errors_for_users(self.path, "the run has no checkpoint"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, buffer.getvalue())

    def resume(self) -> list[float]:
        """Restore the run from its file, if there is one.

        Returns:
            The losses of the steps that are done; empty without a file.

        Raises:
            ValueError: The file is damaged, or it belongs to a run with another configuration or seed.
        """
        if self.path is None or not self.path.exists():
            return []
        state = self._read(self.path)
        self.trained.restore(state)  # first, because the state of the optimiser has the shapes of the parameters
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for rule, rule_state in zip(self.rules, state["controllers"], strict=True):
            rule.restore(rule_state)
        losses: list[float] = state["losses"]
        return losses

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True)  # no code of the file is run
        except Exception as error:  # torch.load raises many types for a damaged file
            raise ValueError(
                f"{path}: not a complete checkpoint ({type(error).__name__}); delete it to restart"
            ) from None
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            raise ValueError(f"{path}: made by another run (configuration or seed differ); delete it to restart")
        return state
