"""AdaLoRA's controller (arXiv:2303.10512): a falling number of singular values, divided among all targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metalora._util.processes import of_process_0
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.config import RankBudgetConfig
from metalora.ranks.groups import FactorGroup, factor_groups


def budget(config: RankBudgetConfig, step: int, steps: int, first: int, last: int) -> int:
    """Compute the number of singular values of all targets together after a step.

    b(t) = b_0 for t <= t_i; b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3, rounded down; b_T for t >= T - t_f
    (AdaLoRA, section 3.3).

    Args:
        config: `start` is t_i, `hold` is t_f.
        step: t.
        steps: T.
        first: b_0.
        last: b_T.

    Example:
        >>> [budget(RankBudgetConfig(start=1, hold=1), step, 6, first=8, last=2) for step in range(7)]
        [8, 8, 4, 2, 2, 2, 2]
    """
    begin, end = config.start, steps - config.hold
    if step <= begin:
        return first
    if step >= end:
        return last
    # the cubic schedule of AdaLoRA: steep at first, flat at the end
    progress = (step - begin) / (end - begin)
    return int(last + (first - last) * (1 - progress) ** 3)


@dataclass(frozen=True)
class SingularGroup:
    """Factors of a form P diag(s) Q: a group that shares one bond, with a vector over the bond.

    Attributes:
        group: The factors.
        values_key: The key of the singular values s.
    """

    group: FactorGroup
    values_key: str


class RankBudget:
    """Keeps the singular values that matter most, masks the others, and keeps their vectors near orthonormal.

    The singular values are a learned factor whose only mode is a bond (AdaLoRA's E); their vectors are the other
    learned factors with that bond. With I = |w dL/dw| of every number w, after each step

        sensitivity  S = beta1 S + (1 - beta1) I,  uncertainty  U = beta2 U + (1 - beta2) |I - S|,

    and the score of value k is S U of itself plus, for each factor, the mean of S U over its k-th slice. Tensors keep
    their shapes: a masked value is zero, and may come back at a later choice until the last `hold` steps.

    Args:
        model: A model with an adapter.
        config: The budget and when it falls.
        steps: The number of optimiser steps of the run.

    Attributes:
        sensitivity: Key of a learned factor -> S, of its shape.
        uncertainty: Key -> U, of its shape.
        kept: Key of singular values -> which are not masked, (rank,) of bool; empty before the first choice.

    Raises:
        ValueError: The model has no adapter, the method has no such factor, or numbers of the configuration are
            impossible.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = attach(model, AdapterConfig("adalora", rank=4, targets=("0",)))
        >>> controller = RankBudget(model, RankBudgetConfig(final=2, every=1), steps=10)
        >>> model(torch.ones(1, 8)).sum().backward()
        >>> controller.after(1), controller.after(9), list(controller.ranks.values())
        (3, 2, [2])
    """

    def __init__(self, model: nn.Module, config: RankBudgetConfig, steps: int):
        adapter = adapter_of(model)
        if adapter is None:
            raise ValueError(f"rank budget: {type(model).__name__} has no adapter")
        self.adapter, self.config, self.steps = adapter, config, steps
        self.singular_groups = _singular_groups(adapter)
        self.values_keys = [singular.values_key for singular in self.singular_groups]
        self.first = sum(self._factor(key).numel() for key in self.values_keys)
        self.last = config.final * len(self.singular_groups)  # b_T of all targets together
        self._check()
        learned_keys = [key for singular in self.singular_groups for keys in singular.group.keys for key in keys]
        self.sensitivity = {key: torch.zeros_like(self._factor(key)) for key in learned_keys}
        self.uncertainty = {key: torch.zeros_like(self._factor(key)) for key in learned_keys}
        self.kept: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """Compute what is added to the loss: gamma times the mean over all factors of vectors of |V' V - I|_F.

        Returns:
            A scalar, V being (everything else, bond); None if gamma (`orthogonality`) is zero.
        """
        if not self.config.orthogonality:
            return None
        deviations: list[Tensor] = []
        for singular in self.singular_groups:
            flat_factors = singular.group.gather(self.adapter.factors)
            for keys, vectors in zip(singular.group.keys, flat_factors, strict=True):
                # the singular values are a group member too, but not vectors
                if keys != (singular.values_key,):
                    identity = torch.eye(vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
                    gram = vectors.mT @ vectors  # (rank, rank)
                    deviations.append(torch.linalg.matrix_norm(gram - identity))
        return self.config.orthogonality * torch.stack(deviations).mean()

    @torch.no_grad()
    def after(self, step: int, optimizer: Optimizer | None = None) -> int:
        """Update the scores from the gradients, and mask singular values if it is time.

        Args:
            step: The number of optimiser steps so far; the gradients of the last one are still there.
            optimizer: Not used.

        Returns:
            The budget after this step.
        """
        end = self.steps - self.config.hold
        if step < end:  # as in the code of AdaLoRA: the choice at `end` uses the scores of the step before
            self._update_scores()
        budget_now = budget(self.config, step, self.steps, self.first, self.last)
        between = self.config.start < step < end
        # the last choice is made at `end` even if `every` does not divide it
        choose = step == end or (between and step % self.config.every == 0)
        if choose:
            self.kept = self._beside_factors(of_process_0(self._largest_scores(budget_now)))
        if choose or step > end:  # after the last choice every step, since the optimiser moves masked values again
            for key, mask in self.kept.items():
                self._factor(key).mul_(mask)
        return budget_now

    @property
    def ranks(self) -> dict[str, int]:
        """Key of the singular values -> how many are not masked."""
        if self.kept:
            return {key: int(self.kept[key].sum()) for key in self.values_keys}
        return {key: self._factor(key).numel() for key in self.values_keys}

    def scores(self) -> dict[str, Tensor]:
        """Key of the singular values -> the score of each, (rank,)."""
        scores: dict[str, Tensor] = {}
        for singular in self.singular_groups:
            sensitivities = singular.group.gather(self.sensitivity)  # (n, rank) for every factor
            uncertainties = singular.group.gather(self.uncertainty)
            # (rank,) for every factor; of the singular values, whose n is one, the value itself
            means = [(s * u).mean(0) for s, u in zip(sensitivities, uncertainties, strict=True)]
            scores[singular.values_key] = torch.stack(means).sum(0)
        return scores

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores: the scores so far and the last choice."""
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty, "kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.sensitivity = self._beside_factors(state["sensitivity"])
        self.uncertainty = self._beside_factors(state["uncertainty"])
        self.kept = self._beside_factors(state["kept"])

    def _beside_factors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors by the key of a factor on the devices of these factors."""
        return {key: tensor.to(self._factor(key).device) for key, tensor in tensors.items()}

    def _factor(self, key: str) -> Tensor:
        return self.adapter.factors[key]

    def _update_scores(self) -> None:
        beta1, beta2 = self.config.beta1, self.config.beta2
        for key, sensitivity in self.sensitivity.items():
            value = self._factor(key)
            if value.grad is None:  # the factor of a task that is not in the batch
                continue
            importance = (value * value.grad).abs()  # I = |w dL/dw|: to first order, what masking w costs
            sensitivity.mul_(beta1).add_(importance, alpha=1 - beta1)
            # S is updated already: the deviation is from the new mean, as in that code
            self.uncertainty[key].mul_(beta2).add_((importance - sensitivity).abs(), alpha=1 - beta2)

    def _largest_scores(self, count: int) -> dict[str, Tensor]:
        """Masks (rank,) of the `count` values with the highest scores; of equal ones the first."""
        scores = self.scores()
        all_scores = torch.cat(list(scores.values()))
        mask = torch.zeros_like(all_scores, dtype=torch.bool)
        # one ranking for all targets: a target may lose all of its values; stable, so that devices agree on ties
        mask[all_scores.argsort(descending=True, stable=True)[:count]] = True
        masks = torch.split(mask, [len(score) for score in scores.values()])
        return dict(zip(scores, masks, strict=True))

    def _check(self) -> None:
        config, num_targets = self.config, len(self.singular_groups)
        if config.final * num_targets > self.first:
            raise ValueError(
                f"rank budget: final is {config.final} for each of {num_targets} targets, expected 1 to "
                f"{self.first // num_targets}, what each has now"
            )
        if config.start + config.hold >= self.steps:
            raise ValueError(
                f"rank budget: start {config.start} and hold {config.hold} leave none of {self.steps} steps between"
            )


def _singular_groups(adapter: Adapter) -> list[SingularGroup]:
    """The groups of factors that share one bond, with a vector over it among them.

    Raises:
        ValueError: A group is of another kind, or there is none.
    """
    try:
        groups = factor_groups(adapter)
    except ValueError:  # a method without a sweep has no singular values either; say so
        groups = []
    singular_groups = [
        SingularGroup(group, key)
        for group in groups
        if group.topology == "shared bond" and (key := _vector_key(adapter, group)) is not None
    ]
    if not groups or len(singular_groups) < len(groups):
        raise ValueError(
            f"rank budget: method {adapter.method.name!r} has no singular values here, a learned vector over a bond "
            "that all its other learned factors share, as E of 'adalora'"
        )
    return singular_groups


def _vector_key(adapter: Adapter, group: FactorGroup) -> str | None:
    """The key of the factor that has no mode but the bond."""
    params = adapter.layout.params
    return next((key for keys in group.keys for key in keys if len(params[key].modes) == 1), None)
