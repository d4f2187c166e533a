"""AdaLoRA's controller (arXiv:2303.10512): a falling number of singular values, shared out among all targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.config import RankBudgetConfig
from metalora.ranks.groups import FactorGroup, factor_groups


def budget(config: RankBudgetConfig, step: int, steps: int, first: int, last: int) -> int:
    """The number of singular values after `step` of `steps` steps, all targets together.

    b(t) = b_0 for t <= t_i; b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3, rounded down; b_T for t >= T - t_f.
    """
    begin, end = config.start, steps - config.hold
    if step <= begin:
        return first
    if step >= end:
        return last
    return int(last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3)


class RankBudget:
    """Keeps the singular values that matter most and zeroes the others, and holds their vectors near orthonormal.

    The singular values are a learned factor whose only mode is a bond (AdaLoRA's E), its vectors the other learned
    factors with that bond. With I = |w dL/dw| of every number w, after each step

        sensitivity  S = beta1 S + (1 - beta1) I,  uncertainty  U = beta2 U + (1 - beta2) |I - S|,

    and the score of value k is S U of itself plus, for each factor, the mean of S U over its k-th slice. Tensors keep
    their shapes: a masked value is zero, and may come back at a later choice until the last `hold` steps.
    ValueError: a method without such a factor, numbers of the configuration that cannot be.
    """

    def __init__(self, model: nn.Module, config: RankBudgetConfig, steps: int):
        self.adapter, self.config, self.steps = adapter_of(model), config, steps
        if self.adapter is None:
            raise ValueError(f"rank budget: {type(model).__name__} has no adapter")
        self.pieces = _pieces(self.adapter)
        self.keys = [_singular(self.adapter, piece) for piece in self.pieces]
        self.first = sum(self._value(key).numel() for key in self.keys)
        self.last = config.final * len(self.pieces)
        self._check()
        learned = {key: self._value(key) for piece in self.pieces for keys in piece.keys for key in keys}
        self.sensitivity = {key: torch.zeros_like(value) for key, value in learned.items()}
        self.uncertainty = {key: torch.zeros_like(value) for key, value in learned.items()}
        self.kept: dict[str, Tensor] = {}

    def penalty(self) -> Tensor | None:
        """gamma times the mean over all factors of vectors of |V' V - I|_F, V (everything else, bond)."""
        if not self.config.orthogonality:
            return None
        vectors = [
            value
            for piece, key in zip(self.pieces, self.keys, strict=True)
            for keys, value in zip(piece.keys, piece.gather(self.adapter.factors), strict=True)
            if keys != (key,)
        ]
        eyes = (torch.eye(v.shape[1], dtype=v.dtype, device=v.device) for v in vectors)
        norms = [torch.linalg.matrix_norm(v.mT @ v - eye) for v, eye in zip(vectors, eyes, strict=True)]
        return self.config.orthogonality * torch.stack(norms).mean()

    @torch.no_grad()
    def after(self, step: int, optimizer: Any = None) -> int:
        """Update the scores from the last gradients and mask where it is time; the budget after this step."""
        end = self.steps - self.config.hold
        if step < end:
            self._observe()
        now = budget(self.config, step, self.steps, self.first, self.last)
        choose = step == end or (self.config.start < step < end and step % self.config.every == 0)
        if choose:
            self.kept = self._chosen(now)
        if choose or step > end:
            for key, kept in self.kept.items():
                self._value(key).mul_(kept)
        return now

    @property
    def ranks(self) -> dict[str, int]:
        """Key of the singular values -> how many are not masked."""
        return {key: int(self.kept[key].sum()) if self.kept else self._value(key).numel() for key in self.keys}

    def scores(self) -> dict[str, Tensor]:
        """Key of the singular values -> the score of each, (rank,)."""
        found = {}
        for piece, key in zip(self.pieces, self.keys, strict=True):
            both = (piece.gather(self.sensitivity), piece.gather(self.uncertainty))
            found[key] = sum((s * u).mean(0) for s, u in zip(*both, strict=True))
        return found

    def state(self) -> dict[str, Any]:
        """Scores so far and the last choice."""
        return {"sensitivity": self.sensitivity, "uncertainty": self.uncertainty, "kept": self.kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        self.sensitivity, self.uncertainty, self.kept = state["sensitivity"], state["uncertainty"], state["kept"]

    def _value(self, key: str) -> Tensor:
        return self.adapter.factors[key]

    def _observe(self) -> None:
        beta1, beta2 = self.config.beta1, self.config.beta2
        for key, mean in self.sensitivity.items():
            value = self._value(key)
            if value.grad is None:  # a task that no batch had
                continue
            now = (value * value.grad).abs()
            mean.mul_(beta1).add_(now, alpha=1 - beta1)
            self.uncertainty[key].mul_(beta2).add_((now - mean).abs(), alpha=1 - beta2)

    def _chosen(self, count: int) -> dict[str, Tensor]:
        """Masks of the `count` values with the highest scores; of equal ones the first."""
        scores = self.scores()
        every = torch.cat(list(scores.values()))
        kept = torch.zeros_like(every, dtype=torch.bool)
        kept[every.argsort(descending=True, stable=True)[:count]] = True
        return dict(zip(scores, kept.split([len(one) for one in scores.values()]), strict=True))

    def _check(self) -> None:
        config = self.config
        if not 1 <= config.final * len(self.pieces) <= self.first:
            raise ValueError(
                f"rank budget: final is {config.final} for each of {len(self.pieces)} targets, expected 1 to "
                f"{self.first // len(self.pieces)}, what each has now"
            )
        if config.start < 0 or config.hold < 0 or config.start + config.hold >= self.steps:
            raise ValueError(
                f"rank budget: start {config.start} and hold {config.hold} leave none of {self.steps} steps between"
            )
        if config.every < 1:
            raise ValueError(f"rank budget: every is {config.every}, expected at least 1")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(config, name) < 1:
                raise ValueError(f"rank budget: {name} is {getattr(config, name)}, expected between 0 and 1")


def _pieces(adapter: Adapter) -> list[FactorGroup]:
    """The sets of factors that share one bond, with a vector over it among them."""
    try:
        found = factor_groups(adapter)
    except ValueError:
        found = []
    if not found or any(piece.kind != "shared bond" or _singular(adapter, piece) is None for piece in found):
        raise ValueError(
            f"rank budget: method {adapter.method.name!r} has no singular values here, a learned vector over a bond "
            "that all its other learned factors share, as E of 'adalora'"
        )
    return found


def _singular(adapter: Adapter, piece: FactorGroup) -> str | None:
    """The key of the factor that has no mode but the bond."""
    stored = adapter.layout.params
    return next((key for keys in piece.keys for key in keys if len(stored[key].modes) == 1), None)
