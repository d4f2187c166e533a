"""Several cuts at one target: a sum of networks is one Left, Mid and Right, side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.forms.low_rank import LowRankForm


class SumForm:
    """Delta W = sum_t Left_t Mid_t Right_t, with the widths k_t one after another; read as a `LowRankForm` is."""

    full_rank = False

    def __init__(self, cuts: Sequence[LowRankForm]):
        self.cuts = tuple(cuts)
        self.left = [f for cut in cuts for f in cut.left]
        self.mid = [f for cut in cuts for f in cut.mid]
        self.right = [f for cut in cuts for f in cut.right]
        self.left_batched, self.mid_batched = any(c.left_batched for c in cuts), any(c.mid_batched for c in cuts)
        self.right_batched, self.fold_batched = any(c.right_batched for c in cuts), any(c.fold_batched for c in cuts)
        self.left_rank, self.right_rank = sum(c.left_rank for c in cuts), sum(c.right_rank for c in cuts)
        self.dense_macs, self.macs_per_token = sum(c.dense_macs for c in cuts), sum(c.macs_per_token for c in cuts)
        self.left_shape = [self.left_rank]
        self.kernel = ConcatenatedContraction(
            self.left, [Part(c.kernel, c.left, c.left_batched, c.left_rank) for c in cuts]
        )
        self.expand = ConcatenatedContraction(
            self.right, [Part(c.expand, c.right, c.right_batched, c.right_rank) for c in cuts]
        )
        folds = [Part(c.fold, c.mid + c.right, c.fold_batched, c.left_rank) for c in cuts]
        self.fold = ConcatenatedContraction(self.mid + self.right, folds)

    @property
    def rank(self) -> int:
        """The width of the cut: the rank of an exact LoRA export."""
        return self.left_rank

    @property
    def summary(self) -> tuple[str, str, str]:
        """Left, Mid and Right in words."""
        return repr(self.kernel), repr(self.mix) if self.mid else "identity", repr(self.expand)

    def mix(self, operands: Sequence[Tensor]) -> Tensor:
        """The hidden activation (b, t, k) and all Mids -> (b, t, k')."""
        hidden, mids = operands[0], dict(zip(self.mid, operands[1:], strict=True))
        parts = torch.split(hidden, [cut.left_rank for cut in self.cuts], -1)
        return torch.cat(
            [
                cut.mix([part.reshape(*part.shape[:-1], *cut.left_shape), *(mids[f] for f in cut.mid)]).flatten(2)
                for cut, part in zip(self.cuts, parts, strict=True)
            ],
            -1,
        )


class Part:
    """A contraction of one cut: the factors it takes, whether its result has a batch axis, the width k of its bonds."""

    def __init__(self, contraction: Contraction, factors: Sequence[str], batched: bool, width: int):
        self.contraction, self.factors, self.batched, self.width = contraction, factors, batched, width
        self.bonds = len(contraction.out) - batched - contraction.tail_modes

    def __call__(self, values: dict[str, Tensor], batched: bool) -> Tensor:
        """(b if `batched`, k, ...)."""
        value = self.contraction([values[f] for f in self.factors])
        lead = value.shape[:1] if self.batched else (1,) * batched
        return value.reshape(*lead, self.width, *value.shape[int(self.batched) + self.bonds :])


class ConcatenatedContraction:
    """The contractions of several cuts, their results one after another along k; `factors` is the operands' order."""

    def __init__(self, factors: Sequence[str], parts: Sequence[Part]):
        self.factors, self.parts = tuple(factors), tuple(parts)
        self.batched = any(part.batched for part in parts)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        values = dict(zip(self.factors, operands, strict=True))
        found = [part(values, self.batched) for part in self.parts]
        if self.batched:
            n = max(len(one) for one in found)
            found = [one.expand(n, *one.shape[1:]) for one in found]
        return torch.cat(found, int(self.batched))

    def __repr__(self) -> str:
        return " + ".join(repr(part.contraction) for part in self.parts)
