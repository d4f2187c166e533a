"""How sensitive the loss is to the singular values of an adapter: gradients at its bonds, recorded while it trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalora.adapters.attach import adapter_of
from metalora.ranks.groups import FactorGroup, factor_groups
from metalora.tensornet.truncation.importance import bond_gradients

GradientsOfGroups = list[dict[str, Tensor]]  # for every group: bond -> (bond, bond)


class LossSensitivity:
    """The gradients of the loss at the bonds of an adapter for the last batches: what `sweep` chooses by.

    A sweep then keeps the singular values s with the highest scores s |dL/ds|, the mean over the batches, instead of
    the largest. One batch alone says little, since its gradient is mostly noise. A batch costs a matrix (bond, bond)
    for each bond.

    Args:
        model: A model with an adapter.
        batches: How many batches count; older ones are forgotten.

    Raises:
        ValueError: The model has no adapter, or its factors have no sweep by importance, such as a ring.

    Example:
        >>> from metalora import AdapterConfig, attach, sweep
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> adapter = attach(model, AdapterConfig("lora", rank=4, targets=("0",)))
        >>> _ = nn.init.normal_(adapter.factors["0.B"])
        >>> sensitivity = LossSensitivity(model)
        >>> for _ in range(3):
        ...     model.zero_grad()
        ...     model(torch.randn(5, 8)).square().mean().backward()
        ...     sensitivity.record()
        >>> sweep(model, rank=2, importance=sensitivity).after
        {'r': 2}
    """

    def __init__(self, model: nn.Module, batches: int = 16):
        adapter = adapter_of(model)
        if adapter is None:
            raise ValueError(f"importance: {type(model).__name__} has no adapter")
        if batches < 1:
            raise ValueError(f"importance: batches is {batches}, expected at least 1")
        self.adapter = adapter
        self.groups = factor_groups(adapter)
        _check_topologies(self.groups)
        self.layout = adapter.layout
        self.recorded: deque[GradientsOfGroups] = deque(maxlen=batches)

    @torch.no_grad()
    def record(self) -> None:
        """Read the gradients that a backward pass left in the factors; those of earlier batches must be zeroed before.

        Raises:
            ValueError: No factor has a gradient.
        """
        if not self.state():
            self.recorded.clear()
            self.layout = self.adapter.layout
        factors = self.adapter.learned
        keys = [key for group in self.groups for keys in group.keys for key in keys]
        if all(factors[key].grad is None for key in keys):
            raise ValueError("importance: no factor has a gradient; record after loss.backward()")
        # the factor of a task that is not in the batch has none
        gradients = {
            key: torch.zeros_like(factors[key]) if (gradient := factors[key].grad) is None else gradient for key in keys
        }
        of_groups = [
            bond_gradients(group.factor_bonds, _double(group.gather(factors)), _double(group.gather(gradients)))
            for group in self.groups
        ]
        # in half precision the optimiser skips a step whose gradients overflow, and so does this
        finite = [matrix.isfinite().all() for matrices in of_groups for matrix in matrices.values()]
        if torch.stack([flag.to(finite[0].device) for flag in finite]).all():  # one number: a GPU is waited for once
            self.recorded.append(of_groups)

    def of_group(self, number: int) -> dict[str, Tensor]:
        """Return what was recorded of one of the groups: bond -> (batch, bond, bond).

        Raises:
            ValueError: Nothing was recorded since the last sweep.
        """
        if not self.state():
            raise ValueError(
                "importance: nothing is recorded since the last sweep; call record() after the backward pass of some "
                "batches"
            )
        return {
            bond: torch.stack([of_groups[number][bond] for of_groups in self.recorded])
            for bond in self.recorded[0][number]
        }

    def state(self) -> list[GradientsOfGroups]:
        """What a checkpoint stores: the batches since the last sweep, which has changed the bases, if not the ranks."""
        return list(self.recorded) if self.layout is self.adapter.layout else []

    def restore(self, state: Sequence[GradientsOfGroups]) -> None:
        """Go on from what `state` returned, with the adapter as it was then."""
        self.layout = self.adapter.layout
        device = next(iter(self.adapter.learned.values())).device
        for of_groups in state:
            self.recorded.append(
                [{bond: matrix.to(device) for bond, matrix in matrices.items()} for matrices in of_groups]
            )


def _check_topologies(groups: Sequence[FactorGroup]) -> None:
    for group in groups:
        if group.topology == "ring":
            raise ValueError(
                f"importance of {group}: a ring has no singular values of its own, so that the loss has no derivatives "
                "with respect to them"
            )


def _double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]
