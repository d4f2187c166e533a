"""A readout that is fitted to a support set: tensors only, no parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metalora._util.shown import shown
from metalora._util.suggest import check_choice
from metalora.learner.readouts.kernel import kernel_of_distances, squared_distances
from metalora.learner.readouts.projection import Projection
from metalora.learner.readouts.rules import KernelRule, LinearRule, NeighbourRule, PrototypeRule, Rule
from metalora.learner.readouts.standardise import Scaling
from metalora.learner.readouts.targets import Targets

PER_OUTPUT = ("leave_one_out", "rule.coefficients", "rule.slope", "rule.offset", "rule.prior", "rule.membership")
STORED_AXES = {
    **{name: 0 for name in ("rule.scale", "rule.temperature")},
    **{name: 1 for name in ("mean", "factor", "nearest", "rule.offset", "rule.prior")},
    **{name: 2 for name in ("support", "leave_one_out", "rule.coefficients", "rule.slope", "rule.membership")},
    "rule.prototypes": 2,
}
RULES: dict[str, type[Rule]] = {rule.name: rule for rule in (KernelRule, LinearRule, PrototypeRule, NeighbourRule)}


@dataclass(frozen=True)
class FittedReadout:
    """What a readout makes of a support set; `Readout.fit` returns it.

    Attributes:
        scaling: Standardisation and weights of the features.
        support: Weighted features of the support set, or of its representatives in a compact form, (n', d).
        rule: How weighted features become logits.
        targets: The targets of the support set.
        leave_one_out: Logits (or predictions) of each item of the support set without this item, (n, count).
        nearest: Distance of each item of the support set to its nearest other item (or representative), (n,);
            None after a fit in training mode, and then it is computed when it is needed.
        balanced: Whether the logits leave out how often classes occur.
        readout: Name of the readout.
        halved: Names of the tensors that are stored in half precision; their values are rounded already.
        groups: Groups of the items of the support set, (n,), if there are some.
        temperature: What the logits were divided by, so that their probabilities are right; None: nothing, or it is
            not known, as after reading from a file.

    Example:
        >>> from metalora.learner.readouts.registry import make_readout
        >>> support, codes = torch.randn(12, 5), torch.arange(12) % 3
        >>> fitted = make_readout("kernel-ridge").eval().fit(support, Targets.classes(codes, 3))
        >>> fitted.logits(torch.randn(4, 5)).shape
        torch.Size([4, 3])
    """

    scaling: Scaling
    support: Tensor
    rule: Rule
    targets: Targets
    leave_one_out: Tensor
    nearest: Tensor | None
    balanced: bool
    readout: str
    halved: tuple[str, ...] = ()
    groups: Tensor | None = None
    temperature: float | None = None

    def logits(self, queries: Tensor) -> Tensor:
        """Return the logits of queries, of which softmax (classes) or sigmoid (labels) makes probabilities.

        Args:
            queries: Features, (m, d), of the same columns as the support set.

        Returns:
            Logits of the classes or the labels, or the predicted numbers, (m, count).

        Raises:
            ValueError: The number of features is another one, or a feature is not finite.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets).logits(torch.randn(4, 5)).shape
            torch.Size([4, 3])
        """
        with full_precision(queries):
            return self.rule.logits(self._weighted(queries), self.support)

    def novelty(self, queries: Tensor) -> Tensor:
        """Return how unlike the support set each query is, from 0 to 1.

        It is the share of the items of the support set that are nearer to their nearest other item than the query is to
        its nearest item, in weighted features.

        Args:
            queries: Features, (m, d).

        Returns:
            Novelties, (m,).

        Raises:
            ValueError: As `logits`.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> support, targets = torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(support, targets)
            >>> fitted.novelty(torch.full((1, 5), 100.0))
            tensor([1.])
        """
        with full_precision(queries):
            return self._novelty_of(squared_distances(self._weighted(queries), self.support))

    @torch.no_grad()
    def outputs(self, queries: Tensor, *, novelty: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `logits`, `novelty` and `embed` return, without computing twice what they share.

        Args:
            queries: Features, (m, d).
            novelty: Whether the novelty is computed; otherwise it is empty, (0,).

        Returns:
            Logits (m, count), novelties (m,) and weighted features (m, d').

        Raises:
            ValueError: As `logits`.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets)
            >>> [tuple(output.shape) for output in fitted.outputs(torch.randn(4, 5))]
            [(4, 3), (4,), (4, 5)]
        """
        with full_precision(queries):
            weighted, is_kernel = self._weighted(queries), isinstance(self.rule, KernelRule)
            none = weighted.new_zeros(0)
            if not (novelty or is_kernel):
                return self.rule.logits(weighted, self.support), none, weighted
            products = weighted @ self.support.mT  # (m, n)
            distances = squared_distances(weighted, self.support, products, self._support_norms)
            if isinstance(self.rule, KernelRule):
                logits = self.rule.logits_of_kernel(kernel_of_distances(products, distances), weighted, self.support)
            else:
                logits = self.rule.logits(weighted, self.support)
            return logits, self._novelty_of(distances) if novelty else none, weighted

    @cached_property
    def _support_norms(self) -> Tensor:
        """The squared norms of the rows of the support set, (n,): for few queries they cost as much as the products."""
        return self.support.detach().square().sum(1)

    def _novelty_of(self, distances: Tensor) -> Tensor:
        """Return the novelties, (m,), of squared distances to the support set, (m, n)."""
        to_nearest = distances.amin(1).sqrt()  # (m,)
        return (self._nearest() < to_nearest[:, None]).to(distances.dtype).mean(1)

    def neighbours(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k items of the support set that are nearest to each query, in weighted features.

        Args:
            queries: Features, (m, d).
            k: Number of neighbours, from 1 to the number of items.

        Returns:
            Positions of the items, int64 (m, k), the nearest first; in a compact form with representatives, positions
            among these. And the distances, (m, k).

        Raises:
            ValueError: As `logits`, or k is not from 1 to the number of items.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> support, targets = torch.randn(12, 5), Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(support, targets)
            >>> fitted.neighbours(support[7:8], k=1)[0]
            tensor([[7]])
        """
        if not 1 <= k <= len(self.support):
            raise ValueError(f"k must be from 1 to {len(self.support)}, the items of the support set, not {k}")
        with full_precision(queries):
            # In float64: a difference of large squares has no digits left for an item that is the query itself.
            distances = squared_distances(self._weighted(queries).double(), self.support.double()).sqrt()  # (m, n)
        nearest = distances.sort(dim=1, stable=True)
        return nearest.indices[:, :k], nearest.values[:, :k].to(self.support.dtype)

    def _nearest(self) -> Tensor:
        """Return the distance of each item of the support set to its nearest other item, (n,)."""
        return nearest_distances(self.support) if self.nearest is None else self.nearest

    def embed(self, queries: Tensor) -> Tensor:
        """Return queries as weighted features, in which what tells of the task counts most.

        Args:
            queries: Features, (m, d).

        Returns:
            The weighted features, (m, d'); d' is smaller than d in a compact form.

        Raises:
            ValueError: As `logits`.
        """
        return self._weighted(queries)

    def _weighted(self, queries: Tensor) -> Tensor:
        """Return the weighted features, (m, d), of queries."""
        width = self.scaling.width
        if queries.ndim != 2 or queries.shape[1] != width:
            raise ValueError(f"queries must have shape (m, {width}) as the support set, not {tuple(queries.shape)}")
        check_finite("queries", queries)
        return self.scaling(queries.to(self.scaling.mean))

    def to(self, reference: Tensor) -> FittedReadout:
        """Return the fitted readout in the dtype and on the device of another tensor.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets)
            >>> fitted.to(torch.ones(1, dtype=torch.float64)).support.dtype
            torch.float64
        """
        return replace(
            self,
            scaling=self.scaling.to(reference),
            support=self.support.to(reference),
            rule=self.rule.to(reference),
            targets=self.targets.to(reference),
            leave_one_out=self.leave_one_out.to(reference),
            nearest=self._nearest().to(reference),
        )

    def compact(self, max_bytes: int) -> FittedReadout:
        """Return a form that takes at most `max_bytes` in a file: fewer dimensions, items and bits.

        A readout that is small enough is returned as it is.

        Args:
            max_bytes: The largest size, in bytes.

        Raises:
            ValueError: There is no form that small.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(60) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(60, 400), targets)
            >>> sum(tensor.nbytes for tensor in fitted.compact(20_000).tensors().values()) < 20_000
            True
        """
        from metalora.learner.readouts.compact import compacted  # it imports this module

        return compacted(self, max_bytes)

    def rounded(self) -> FittedReadout:
        """Return the readout as it would be read from a file: in float32, with rounded halves.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5).double(), targets)
            >>> fitted.rounded().support.dtype
            torch.float32
        """
        return FittedReadout.from_tensors(self.tensors(), self.settings()).to(self.support.float())

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name, detached; with `settings` they are the whole fitted readout.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets)
            >>> fitted.tensors()["rule.coefficients"].shape
            torch.Size([12, 3])
        """
        tensors = {
            "mean": self.scaling.mean,
            "factor": self.scaling.factor,
            "support": self.support,
            "targets": _packed(self.targets),
            "leave_one_out": self.leave_one_out,
            "nearest": self._nearest(),
        }
        if self.scaling.columns is not None:
            tensors["columns"] = self.scaling.columns.to(torch.int32)
        if self.scaling.projection is not None:
            tensors["levels"] = self.scaling.projection.levels
            tensors["mixing"] = self.scaling.projection.mixing
        tensors |= {f"rule.{name}": tensor for name, tensor in self.rule.tensors().items()}
        tensors |= {name: tensors[name].half() for name in self.halved}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    def settings(self) -> dict[str, Any]:
        """Return everything that is no tensor, as JSON can store it.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets).settings()["kind"]
            'classes'
        """
        return {
            "readout": self.readout,
            "kind": self.targets.kind,
            "count": self.targets.count,
            "width": self.scaling.width,
            "balanced": self.balanced,
            "rule": self.rule.name,
            "rule_settings": self.rule.settings(),
            "halved": list(self.halved),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> FittedReadout:
        """Return the fitted readout that `tensors` and `settings` describe.

        Args:
            tensors: What `tensors` returned.
            settings: What `settings` returned.

        Raises:
            ValueError: A tensor is missing, is not expected or has another dtype or shape, or the rule is unknown.

        Example:
            >>> from metalora.learner.readouts.registry import make_readout
            >>> targets = Targets.classes(torch.arange(12) % 3, 3)
            >>> fitted = make_readout("kernel-ridge").eval().fit(torch.randn(12, 5), targets)
            >>> same = FittedReadout.from_tensors(fitted.tensors(), fitted.settings())
            >>> queries = torch.randn(4, 5)
            >>> torch.equal(same.logits(queries), fitted.logits(queries))
            True
        """
        check_choice("rule of a fitted readout", settings["rule"], sorted(RULES))
        missing = {"mean", "factor", "support", "targets", "leave_one_out", "nearest"} - set(tensors)
        if missing:
            raise ValueError(f"a fitted readout has no tensor {sorted(missing)[0]!r}")
        halved = tuple(settings["halved"])
        _check_stored(tensors, halved, settings["count"])
        values = {name: tensor.float() if name in halved else tensor for name, tensor in tensors.items()}
        rule_tensors = {
            name.removeprefix("rule."): tensor for name, tensor in values.items() if name.startswith("rule.")
        }
        fitted = cls(
            scaling=_stored_scaling(values, settings["width"]),
            support=values["support"],
            rule=RULES[settings["rule"]](**rule_tensors, **settings["rule_settings"]),
            targets=_unpacked(values["targets"], settings["kind"], settings["count"], values["mean"]),
            leave_one_out=values["leave_one_out"],
            nearest=values["nearest"],
            balanced=settings["balanced"],
            readout=settings["readout"],
            halved=halved,
        )
        for name in sorted(set(tensors) - set(fitted.tensors())):
            raise ValueError(f"a fitted readout has no tensor {shown(name)}")
        return fitted


def _check_stored(tensors: Mapping[str, Tensor], halved: Sequence[str], count: int) -> None:
    """Raise a ValueError for a stored tensor of another dtype, or of a shape that would be broadcast."""
    for name, tensor in tensors.items():
        dtypes = (torch.float16,) if name in halved else (torch.float32, torch.float64)
        if name in STORED_AXES and tensor.dtype not in dtypes:
            raise ValueError(f"{name!r} is in {tensor.dtype}, expected {dtypes[0]}")
        if name in STORED_AXES and tensor.ndim != STORED_AXES[name]:
            raise ValueError(f"{name!r} has {tensor.ndim} axes, expected {STORED_AXES[name]}")
        if name in PER_OUTPUT and tensor.shape[-1] != count:
            raise ValueError(f"{name!r} is for {tensor.shape[-1]} outputs, expected {count}")
    if tensors["mean"].dtype != tensors["factor"].dtype:
        raise ValueError(f"'mean' is in {tensors['mean'].dtype}, 'factor' in {tensors['factor'].dtype}")


def _stored_scaling(tensors: Mapping[str, Tensor], width: int) -> Scaling:
    """Return the scaling of the tensors of a fitted readout."""
    columns = tensors.get("columns")
    projection = Projection(tensors["levels"], tensors["mixing"]) if "levels" in tensors else None
    return Scaling(tensors["mean"], tensors["factor"], width, columns, projection)


def full_precision(features: Tensor) -> torch.autocast:
    """Return a context without mixed precision, in which a kernel could not be inverted.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.ones(1)):
        ...     (torch.eye(2) @ torch.eye(2)).dtype
        torch.float32
    """
    return torch.autocast(features.device.type, enabled=False)


def nearest_distances(support: Tensor) -> Tensor:
    """Return the distance of each item to its nearest other item, (n,), without gradient.

    Args:
        support: Weighted features, (n, d).

    Example:
        >>> nearest_distances(torch.tensor([[0.0], [3.0], [4.0]]))
        tensor([3., 1., 1.])
    """
    distances = squared_distances(support.detach(), support.detach())
    return distances.fill_diagonal_(torch.inf).amin(1).sqrt()


def check_finite(what: str, features: Tensor) -> None:
    """Raise a ValueError that says how many rows of features (n, d) have NaN or infinite values, if any."""
    is_finite = features.isfinite().all(1)
    if not is_finite.all():
        count, first = int((~is_finite).sum()), int(is_finite.long().argmin())
        raise ValueError(f"{what}: {count} of {len(features)} rows have NaN or infinite features (first: row {first})")


def _packed(targets: Targets) -> Tensor:
    """Return targets as a file stores them: codes (n,) of classes in few bytes, the matrix (n, count) otherwise."""
    if targets.kind == "classes":
        return targets.codes.to(torch.uint8 if targets.count <= 256 else torch.int32)
    return targets.matrix.to(torch.uint8) if targets.kind == "multilabel" else targets.matrix


def _unpacked(stored: Tensor, kind: str, count: int, reference: Tensor) -> Targets:
    """Return the targets that `_packed` stored, in the dtype of a reference."""
    if kind == "classes":
        return Targets.classes(stored.long(), count).to(reference)
    targets = Targets.multilabel(stored) if kind == "multilabel" else Targets.numbers(stored)
    return targets.to(reference)
