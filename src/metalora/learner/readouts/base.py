"""What all readouts have in common: checks, modes, the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from metalora._util.suggest import check_choice
from metalora.learner.readouts.discriminant import item_weights
from metalora.learner.readouts.fitted import FittedReadout, check_finite, full_precision, nearest_distances
from metalora.learner.readouts.rules import Rule
from metalora.learner.readouts.standardise import Scaling
from metalora.learner.readouts.targets import TargetKind, Targets


class Readout(nn.Module, ABC):
    """A classifier (or regression) that is generated from a support set in closed form.

    In training mode, `fit` can be differentiated with respect to the support set and the parameters of the readout. In
    eval mode, it computes in float64 (or as `features_in_float64` says) without gradient, chooses its settings by
    leave-one-out on the support set and calibrates its logits.

    Attributes:
        name: Name of the readout.
        kinds: The kinds of targets that it takes.
        balanced: Whether the logits leave out how often classes occur in the support set.
        logit_scale: Learned factor of the logits in the loss, a scalar, 1 at the start.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[TargetKind, ...]] = ("classes",)
    features_in_float64: ClassVar[bool] = True  # False: only what has the size of the support set is, in use

    def __init__(self, *, balanced: bool = False):
        super().__init__()
        self.balanced = balanced
        self.logit_scale = nn.Parameter(torch.ones(()))

    def fit(
        self, support: Tensor, targets: Targets, *, frozen_width: int = 0, groups: Tensor | None = None
    ) -> FittedReadout:
        """Fit the readout to a support set.

        Args:
            support: Features of the examples, (n, d), of any floating dtype; half precision is computed in float32.
            targets: Their targets.
            frozen_width: Number of first columns that are features of the frozen network.
            groups: Group of each example, (n,), such as the product that a picture shows. In use, kernel-ridge chooses
                its kernel and its temperature on items whose whole group was left out, so that variants of one thing do
                not make it too sure; the other readouts and training ignore them.

        Raises:
            ValueError: There are fewer than two examples, the sizes do not fit, a feature is not finite, or the readout
                does not take this kind of targets.
        """
        self._check(support, targets, frozen_width)
        if groups is not None and groups.shape != (len(support),):
            raise ValueError(f"groups must have shape ({len(support)},), not {tuple(groups.shape)}")
        dtype = torch.float64 if support.dtype == torch.float64 else torch.float32
        with full_precision(support):
            if self.training:
                features = support.to(dtype)
                return self._fit_for_training(features, targets.to(features))
            with torch.no_grad():
                features = support.double() if self.features_in_float64 else support.to(dtype)
                wide_targets = targets.to(torch.empty(0, dtype=torch.float64, device=support.device))
                fitted = self._fit_for_use(features, wide_targets, frozen_width, groups)
                return fitted.to(support.to(dtype))

    def loss(self, logits: Tensor, targets: Tensor, kind: TargetKind = "classes") -> Tensor:
        """Return the loss of logits of queries, a mean over the queries.

        Args:
            logits: What `FittedReadout.logits` returned, (m, count).
            targets: Codes of the classes, (m,); or labels or numbers, (m, count).
            kind: "classes": cross-entropy of logit_scale * logits. "multilabel": the binary cross-entropy of them.
                "numbers": squared error.

        Raises:
            ValueError: The kind is unknown.
        """
        check_choice("kind of targets", kind, ("classes", "multilabel", "numbers"))
        if kind == "numbers":
            return mse_loss(logits, targets.to(logits).view_as(logits))
        scaled = self.logit_scale * logits
        if kind == "multilabel":
            return binary_cross_entropy_with_logits(scaled, targets.to(logits))
        return cross_entropy(scaled, targets)

    @abstractmethod
    def _fit_for_training(self, support: Tensor, targets: Targets) -> FittedReadout:
        """Fit to features (n, d) so that the result can be differentiated."""

    @abstractmethod
    def _fit_for_use(
        self, support: Tensor, targets: Targets, frozen_width: int, groups: Tensor | None
    ) -> FittedReadout:
        """Fit to features (n, d) and targets in float64; choose and calibrate by leave-one-out."""

    def _fitted(
        self,
        scaling: Scaling,
        support: Tensor,
        rule: Rule,
        leave_one_out: Tensor,
        targets: Targets,
        nearest: Tensor | None = None,
        groups: Tensor | None = None,
        temperature: float | None = None,
    ) -> FittedReadout:
        """Return the fitted readout of weighted features (n, d) and leave-one-out logits (n, count).

        Args:
            scaling: Scaling of the features.
            support: Weighted features of the support set, (n, d).
            rule: How they become logits.
            leave_one_out: Leave-one-out logits, (n, count).
            targets: The targets.
            nearest: Distance of each item to its nearest other item, (n,); None: computed here, if it is in use.
            groups: Groups of the examples, (n,).
            temperature: What the logits were divided by.
        """
        if nearest is None and not self.training:
            nearest = nearest_distances(support)
        return FittedReadout(
            scaling,
            support,
            rule,
            targets,
            leave_one_out,
            nearest,
            self.balanced,
            self.name,
            groups=groups,
            temperature=temperature,
        )

    def _item_weights(self, targets: Targets) -> Tensor:
        """Return the weight of each item in a leave-one-out likelihood, (n,)."""
        return item_weights(targets, self.balanced)

    def _check(self, support: Tensor, targets: Targets, frozen_width: int) -> None:
        """Raise a ValueError for arguments of `fit` that do not fit."""
        if targets.kind not in self.kinds:
            raise ValueError(f"readout {self.name!r} takes {' or '.join(self.kinds)}, not {targets.kind}")
        if support.ndim != 2 or not support.shape[1]:
            raise ValueError(f"a support set must have shape (examples, features), not {tuple(support.shape)}")
        if len(support) != len(targets.matrix):
            raise ValueError(f"the support set has {len(support)} examples but {len(targets.matrix)} targets")
        if len(support) < 2:
            raise ValueError(f"a support set needs at least 2 examples, not {len(support)}")
        if not 0 <= frozen_width <= support.shape[1]:
            raise ValueError(f"frozen_width must be from 0 to {support.shape[1]} features, not {frozen_width}")
        check_finite("support set", support)
