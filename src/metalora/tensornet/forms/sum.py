"""Several low-rank forms at one target: a sum of networks is one Left, Mid and Right, side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.forms.low_rank import LowRankForm


class SumForm:
    """Delta W = sum_t Left_t . Mid_t . Right_t, with the widths k_t one after another.

    It has the attributes of a `LowRankForm`; k is the sum of the k_t, and all its bonds are one axis.

    Args:
        forms: The form of every term.

    Attributes:
        forms: As the argument.
        left: The factors of all Lefts, term by term; in the same way `mid` and `right`.
        kernel: Factors of all Lefts -> (batch?, k, in, kh?, kw?).
        expand: Factors of all Rights -> (batch?, k', out).
        fold: Factors of all Mids, then of all Rights -> (batch?, k, out).

    Example:
        >>> from metalora.tensornet.network import Network
        >>> specs = {"A": "in r", "B": "r out", "C": "in s", "D": "s out"}
        >>> network = Network.parse(specs, terms=[["A", "B"], ["C", "D"]])
        >>> sizes = {"in": 768, "r": 8, "s": 4, "out": 512}
        >>> form = SumForm([LowRankForm(term, sizes) for term in network.split_terms()])
        >>> form.left, form.right, form.rank
        (['A', 'C'], ['B', 'D'], 12)
        >>> form.kernel([torch.ones(768, 8), torch.ones(768, 4)]).shape
        torch.Size([12, 768])
    """

    full_rank = False

    def __init__(self, forms: Sequence[LowRankForm]):
        self.forms = tuple(forms)
        self.left = [factor for form in forms for factor in form.left]
        self.mid = [factor for form in forms for factor in form.mid]
        self.right = [factor for form in forms for factor in form.right]
        self.left_batched = any(form.left_batched for form in forms)
        self.mid_batched = any(form.mid_batched for form in forms)
        self.right_batched = any(form.right_batched for form in forms)
        self.fold_batched = any(form.fold_batched for form in forms)
        self.left_rank = sum(form.left_rank for form in forms)
        self.right_rank = sum(form.right_rank for form in forms)
        self.dense_macs = sum(form.dense_macs for form in forms)
        self.macs_per_token = sum(form.macs_per_token for form in forms)
        self.left_shape = [self.left_rank]  # the terms have unlike bonds, so k is one axis
        kernels = [Part(form.kernel, form.left, form.left_batched, form.left_rank) for form in forms]
        expands = [Part(form.expand, form.right, form.right_batched, form.right_rank) for form in forms]
        folds = [Part(form.fold, form.mid + form.right, form.fold_batched, form.left_rank) for form in forms]
        self.kernel = ConcatenatedContraction(self.left, kernels)
        self.expand = ConcatenatedContraction(self.right, expands)
        self.fold = ConcatenatedContraction(self.mid + self.right, folds)

    @property
    def rank(self) -> int:
        """k, the width of the form: the rank of an exact LoRA export."""
        return self.left_rank

    @property
    def summary(self) -> tuple[str, str, str]:
        """Left, Mid and Right in words."""
        return repr(self.kernel), repr(self.mix) if self.mid else "identity", repr(self.expand)

    def mix(self, operands: Sequence[Tensor]) -> Tensor:
        """Take the hidden activation through the Mid of every term.

        Args:
            operands: The hidden activation (batch, tokens, k), then the factors of all Mids.

        Returns:
            The hidden activation (batch, tokens, k').
        """
        hidden = operands[0]
        mids = dict(zip(self.mid, operands[1:], strict=True))
        parts = torch.split(hidden, [form.left_rank for form in self.forms], -1)  # (batch, tokens, k_t) each
        # a Mid contracts the single bonds of its term, which are unfolded from k_t here and flattened to k'_t after it
        mixed = [
            form.mix(
                [part.reshape(*part.shape[:-1], *form.left_shape), *(mids[factor] for factor in form.mid)]
            ).flatten(2)
            for form, part in zip(self.forms, parts, strict=True)
        ]
        return torch.cat(mixed, -1)  # (batch, tokens, k')


class Part:
    """A contraction of one term, with its bonds as one axis.

    Args:
        contraction: The contraction of the term's form.
        factors: The factors that it takes, in their order.
        batched: True if its result has a batch axis.
        width: The product of the sizes of the bonds: k, or k' of an `expand`.

    Example:
        >>> kernel = Contraction([("in", "r")], ("r", "in"), {"in": 4, "r": 2}, tail=(1, (4,)))
        >>> Part(kernel, ["A"], batched=False, width=2)({"A": torch.ones(4, 2)}, batched=True).shape
        torch.Size([1, 2, 4])
    """

    def __init__(self, contraction: Contraction, factors: Sequence[str], batched: bool, width: int):
        self.contraction, self.factors, self.batched, self.width = contraction, factors, batched, width
        self.bonds = len(contraction.out) - batched - contraction.tail_modes  # the number of them

    def __call__(self, values: dict[str, Tensor], batched: bool) -> Tensor:
        """Contract the term's factors.

        Args:
            values: Factor -> its value, for the factors of all terms.
            batched: True if the result has to have a batch axis.

        Returns:
            The result (width, ...), or (batch or 1, width, ...) if `batched`.
        """
        value = self.contraction([values[factor] for factor in self.factors])
        lead = value.shape[:1] if self.batched else (1,) * batched  # (batch,), or (1,) for the caller to expand
        return value.reshape(*lead, self.width, *value.shape[int(self.batched) + self.bonds :])


class ConcatenatedContraction:
    """The contractions of several terms, their results one after another along k.

    Args:
        factors: The factors of all terms, in the order of the operands.
        parts: The contraction of every term.

    Example:
        >>> sizes = {"in": 4, "r": 2, "s": 3}
        >>> first = Contraction([("in", "r")], ("r", "in"), sizes, tail=(1, (4,)))
        >>> second = Contraction([("in", "s")], ("s", "in"), sizes, tail=(1, (4,)))
        >>> parts = [Part(first, ["A"], False, width=2), Part(second, ["C"], False, width=3)]
        >>> ConcatenatedContraction(["A", "C"], parts)([torch.ones(4, 2), torch.ones(4, 3)]).shape
        torch.Size([5, 4])
    """

    def __init__(self, factors: Sequence[str], parts: Sequence[Part]):
        self.factors, self.parts = tuple(factors), tuple(parts)
        self.batched = any(part.batched for part in parts)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        """Contract the factors of all terms: the result is (batch?, sum of the widths, ...)."""
        values = dict(zip(self.factors, operands, strict=True))
        results = [part(values, self.batched) for part in self.parts]
        if self.batched:
            # terms without a generated factor have a batch axis of one
            batch = next(len(result) for result, part in zip(results, self.parts, strict=True) if part.batched)
            results = [result.expand(batch, *result.shape[1:]) for result in results]
        return torch.cat(results, int(self.batched))  # along k, which follows the batch axis

    def __repr__(self) -> str:
        return " + ".join(repr(part.contraction) for part in self.parts)
