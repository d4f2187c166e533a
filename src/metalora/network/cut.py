"""The cut of a network between its input side and the rest."""

from collections.abc import Collection, Mapping
from math import prod

from metalora.network.contraction import Contraction
from metalora.network.network import Network, Sizes
from metalora.network.spec import INPUT_MODES, OUTPUT_MODES, Modes


class Cut:
    """Delta W = Left . Mid . Right, every contraction planned once with the real sizes.

    Left:  inputs -> k   the factors with an input mode: a thin layer of the base's own kind
    Mid:   k -> k'       the factors with neither input nor output mode
    Right: k' -> out     the factors with an output mode
    `batched` names the factors that carry a leading batch mode (generated, or indexed per example).
    """

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        terms = {f: (("batch",) if f in batched else ()) + tuple(modes) for f, modes in network.factors.items()}
        sizes = {"batch": 8, "token": 64, **sizes}
        self.inputs = tuple(m for m in INPUT_MODES if any(m in term for term in terms.values()))
        self.left = [f for f, term in terms.items() if set(term) & set(INPUT_MODES)]
        self.right = [f for f, term in terms.items() if f not in self.left and "out" in term]
        self.mid = [f for f in terms if f not in self.left and f not in self.right]
        self.left_batched, self.mid_batched, self.right_batched = (
            any(f in batched for f in side) for side in (self.left, self.mid, self.right)
        )
        left_bonds = _bonds(terms, self.left, self.right + self.mid)
        right_bonds = _bonds(terms, self.right, self.left + self.mid)
        self.left_shape = [sizes[b] for b in left_bonds]
        self.left_rank, self.right_rank = prod(self.left_shape), prod(sizes[b] for b in right_bonds)
        lefts, mids, rights = ([terms[f] for f in side] for side in (self.left, self.mid, self.right))
        left_batch, right_batch = (("batch",) if b else () for b in (self.left_batched, self.right_batched))
        self.kernel = Contraction(lefts, (*left_batch, *left_bonds, *self.inputs), sizes)
        hidden = ("batch", "token", *left_bonds)
        self.mix = Contraction([hidden, *mids], ("batch", "token", *right_bonds), sizes)
        self.expand = Contraction(rights, (*right_batch, *right_bonds, "out"), sizes)
        fold_batch = ("batch",) if self.mid_batched or self.right_batched else ()
        self.fold = Contraction(mids + rights, (*fold_batch, *left_bonds, "out"), sizes)
        self.fold_batched = bool(fold_batch)

    @property
    def rank(self) -> int:
        """k, the width of the cut: the rank of an exact LoRA export."""
        return self.left_rank


def _bonds(terms: Mapping[str, Modes], inside: list[str], outside: list[str]) -> Modes:
    rest = {mode for f in outside for mode in terms[f]}
    own = dict.fromkeys(mode for f in inside for mode in terms[f])
    return tuple(mode for mode in own if mode in rest and mode not in ("batch", *INPUT_MODES, *OUTPUT_MODES))
