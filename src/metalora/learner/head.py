"""A linear head on features of a network, which knows how unlike its training inputs an input is."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import Recorder, run, token_mask, watch_head, watch_stages
from metalora.adapters.conditioning.stages import stages
from metalora.learner.length_parts import by_length

QUANTILES = 101  # of the distances of inputs that were not trained on


class PooledFeatures:
    """The pooled last layer of a network: what its own head reads or, without a head, what the network returns.

    For texts it is the mean of the last stage over the tokens. With `all_stages` the features are the mean and the
    standard deviation of every channel at every stage instead, as `StageFeatures` has them.

    Args:
        model: The network, with its adapter attached already.
        adapter: The adapter; None if there is none.
        is_text: Whether the inputs are texts, whose tokens are averaged.
        all_stages: Whether all stages are read.

    Example:
        >>> PooledFeatures(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), None)(torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None, is_text: bool = False, all_stages: bool = False):
        self.model, self.adapter = model, adapter
        self.means_only = is_text and not all_stages
        self._recorder = Recorder()
        if is_text or all_stages:
            paths = stages(model)
            self._handles = watch_stages(model, paths if all_stages else paths[-1:], self._recorder)
        else:
            self._handles = watch_head(model, self._recorder)

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    def __call__(self, inputs: Any) -> Tensor:
        """Return the features of a batch, (n, width), float32; differentiable with respect to the adapter."""
        features, _ = self.with_penalty(inputs)
        return features

    def with_penalty(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Return the features of a batch, (n, width), and the mean square of c - c0 of a generated adapter."""
        condition = self._condition(inputs)
        if condition is None or self.adapter is None:
            return by_length(self._record, inputs), None
        with self.adapter.using(condition):
            return self._record(inputs), condition.penalty

    def _condition(self, inputs: Any) -> Condition | None:
        """Return the condition of every example of a batch, or of the only task; None for a static adapter."""
        adapter = self.adapter
        if adapter is None:
            return None
        if adapter.task_keys:
            return adapter.task(0)
        return adapter.condition(inputs) if adapter.conditional else None

    def _record(self, inputs: Any) -> Tensor:
        self._recorder.start(inputs)
        try:
            run(self.model, inputs)
            features = self._recorder.take()
        finally:
            self._recorder.stop()
        if self.means_only and token_mask(inputs) is not None:
            return features[:, : features.shape[1] // 2]  # the means come before the deviations
        return features


class LinearHead(nn.Module):
    """Logits of standardised features, and their distance to the nearest class.

    Args:
        width: Number of features.
        classes: Number of classes.

    Example:
        >>> LinearHead(4, 3)(torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """

    mean: Tensor
    scale: Tensor
    centres: Tensor
    distances: Tensor

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(width, classes)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("centres", torch.zeros(classes, width))
        self.register_buffer("distances", torch.zeros(QUANTILES))

    @classmethod
    def fitted(cls, features: Tensor, codes: Tensor, classes: int) -> LinearHead:
        """Return the head of a logistic regression.

        Args:
            features: Features of the frozen network, (n, width).
            codes: Classes, (n,), from 0.
            classes: Number of classes; each occurs.
        """
        from sklearn.linear_model import LogisticRegression

        head = cls(features.shape[1], classes)
        head.mean.copy_(features.mean(0))
        head.scale.copy_(features.std(0).clamp_min(1e-3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a logistic regression that stops early is trained further anyway
            model = LogisticRegression(max_iter=300).fit(head.standardised(features).numpy(), codes.numpy())
        weight, bias = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
        if len(weight) == 1:  # two classes: scikit-learn gives the logit of the second one
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        with torch.no_grad():
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)
        return head

    def standardised(self, features: Tensor) -> Tensor:
        """Return features (n, width) minus their mean, divided by their deviation, of the frozen network."""
        return (features - self.mean) / self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of features (n, width), (n, classes)."""
        logits: Tensor = self.linear(self.standardised(features))
        return logits

    @torch.no_grad()
    def remember(self, features: Tensor, codes: Tensor, others: Tensor) -> None:
        """Remember what inputs look like, for `novelty`.

        Args:
            features: Features of the training inputs, (n, width).
            codes: Their classes, (n,).
            others: Features of inputs that were not trained on, (m, width).
        """
        rows = self.standardised(features)
        self.centres.copy_(torch.stack([rows[codes == number].mean(0) for number in range(len(self.centres))]))
        steps = torch.linspace(0, 1, QUANTILES, device=others.device)
        self.distances.copy_(torch.quantile(self._to_nearest_centre(others), steps))

    def _to_nearest_centre(self, features: Tensor) -> Tensor:
        return torch.cdist(self.standardised(features), self.centres).amin(1)

    @torch.no_grad()
    def novelty(self, features: Tensor) -> Tensor:
        """Return how far from all classes inputs are, (m,), as the share of ordinary inputs that are nearer.

        Args:
            features: Features of the inputs, (m, width).
        """
        positions = torch.searchsorted(self.distances.contiguous(), self._to_nearest_centre(features))
        return positions.clamp(max=QUANTILES - 1).float() / (QUANTILES - 1)
