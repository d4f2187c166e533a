"""The parameters that a run trains: those of an adapter, of a further module, or of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.resize import resize
from metalora.config import TrainConfig, to_dict


class TrainedParameters:
    """The parameters of an adapter, and those of a further module that require a gradient.

    Args:
        adapter: The adapter; it is put into training mode. None trains the further module alone.
        extra_module: A module whose other parameters are trained too; it may contain the adapter.

    Raises:
        ValueError: There is no adapter, and nothing else requires a gradient.

    Example:
        >>> trained = TrainedParameters(None, nn.Linear(4, 2))
        >>> [tuple(parameter.shape) for parameter in trained.parameters]
        [(2, 4), (2,)]
    """

    def __init__(self, adapter: Adapter | None, extra_module: nn.Module | None):
        self.adapter = adapter
        of_adapter = {id(parameter) for parameter in adapter.parameters()} if adapter is not None else set()
        candidates = dict(extra_module.named_parameters()) if extra_module is not None else {}
        self.extra = {
            name: parameter
            for name, parameter in candidates.items()
            if parameter.requires_grad and id(parameter) not in of_adapter
        }
        if adapter is not None:
            adapter.train()
        elif not self.extra:
            raise ValueError("nothing to train: there is no adapter, and nothing else requires a gradient")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, those of the adapter first."""
        of_adapter = self.adapter.parameters() if self.adapter is not None else ()
        return [*of_adapter, *self.extra.values()]

    def groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimiser, each with its learning rate."""
        groups = []
        if self.adapter is not None:
            groups += self.adapter.parameter_groups(config.lr, config.mapping_lr_ratio, config.factor_lr_ratio)
        if self.extra:
            groups.append({"params": list(self.extra.values()), "lr": config.lr})
        return groups

    def identity(self) -> list[Any]:
        """Return, as plain values, what must be equal for a checkpoint to fit: configuration and shapes."""
        shapes = {name: list(parameter.shape) for name, parameter in self.extra.items()}
        if self.adapter is None:
            return [shapes]
        return [to_dict(self.adapter.config), self.adapter.num_params(), shapes]

    def state(self) -> dict[str, Any]:
        """Return the numbers of all parameters, and the rank, which a controller may have lowered."""
        # The words "others" and "fresh" are in checkpoints that exist.
        state: dict[str, Any] = {"others": {name: parameter.detach() for name, parameter in self.extra.items()}}
        if self.adapter is not None:
            state["rank"] = self.adapter.config.rank
            state["factors"] = {key: value.detach() for key, value in self.adapter.learned.items()}
            state["fresh"] = self.adapter.pending_task.state_dict()  # the slices of a task that is being added
            state["starts"] = self.adapter.kept_frozen
            state["biases"] = self.adapter.biases.state_dict()
            if self.adapter.conditioner is not None:
                state["conditioner"] = self.adapter.conditioner.state_dict()
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Set all parameters to what `state` returned; factors take the shapes of the saved rank."""
        for name, value in state["others"].items():
            self.extra[name].copy_(value)
        if self.adapter is not None:
            # A rank schedule may have lowered the rank before the checkpoint was written.
            resize(self.adapter, replace(self.adapter.config, rank=state["rank"]), state["factors"])
            for key, value in state.get("starts", {}).items():
                self.adapter.stored_value(key).copy_(value)
            self.adapter.started = True
            self.adapter.pending_task.load_state_dict(state["fresh"])
            self.adapter.biases.load_state_dict(state.get("biases", {}))  # checkpoints of before have none
            if self.adapter.conditioner is not None:
                self.adapter.conditioner.load_state_dict(state["conditioner"])
