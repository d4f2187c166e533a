"""The cut of a network between its input side and the rest."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain, combinations
from math import prod

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import INPUT_MODES, Modes


class LowRankForm:
    """Delta W = Left . Mid . Right, every contraction planned once with the real sizes.

    Left:  inputs -> k   the factors with an input mode: a thin layer of the base's own kind; factors between join them
                         where that makes k smaller
    Mid:   k -> k'       the factors with neither input nor output mode
    Right: k' -> out     the factors with an output mode
    A factor with modes of both sides (a Kronecker product's) stands right; an identity takes its input modes there.
    `batched` names the factors that carry a leading batch mode (generated, or indexed per example). Folded axes come
    out whole: the kernel as (*bonds, in, kh, kw), expand and fold as (*bonds, out).
    `dense_macs` and `macs_per_token` are multiply-adds: to form Delta W, and to take one position through the three.
    """

    full_rank = False  # a cut is narrower than the weight; a circuit is not

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        terms = {f: (("batch",) if f in batched else ()) + tuple(modes) for f, modes in network.factors.items()}
        sizes = {"batch": 8, "token": 64, **sizes, **{_carried(m): sizes[m] for m in network.inputs}}
        self._open = {*network.inputs, *network.outputs, "batch"}
        eyes = _carry_inputs(terms, network)
        self.left = self._left_side(network, terms, sizes, batched)
        assert self.left, "a network needs a factor whose modes of the weight are of the input side alone"
        self.right = self._right_side(network, terms, sizes, batched)
        self.mid = [f for f in terms if f not in self.left and f not in self.right]
        self.left_batched, self.mid_batched, self.right_batched = (
            any(f in batched for f in side) for side in (self.left, self.mid, self.right)
        )
        left_bonds = self._bonds(
            {**terms, "": tuple(m for eye in eyes for m in eye)}, [*self.left, ""], self.right + self.mid
        )
        right_bonds = self._bonds(terms, self.right, self.left + self.mid)
        right_bonds += tuple(eye[1] for eye in eyes)
        self.left_shape = [sizes[b] for b in left_bonds]
        self.left_rank, self.right_rank = prod(self.left_shape), prod(sizes[b] for b in right_bonds)
        lefts, mids, rights = ([terms[f] for f in side] for side in (self.left, self.mid, self.right))
        left_batch, right_batch = (("batch",) if b else () for b in (self.left_batched, self.right_batched))
        inputs, outputs = network.inputs, network.outputs
        spatial = [sizes[m] for m in inputs if m in INPUT_MODES[1:]]
        kernel_shape = (prod(sizes[m] for m in inputs) // prod(spatial), *spatial)
        out_shape = (prod(sizes[m] for m in outputs),)
        self.kernel = Contraction(lefts, (*left_batch, *left_bonds, *inputs), sizes, (len(inputs), kernel_shape), eyes)
        hidden = ("batch", "token", *left_bonds)
        self.mix = Contraction([hidden, *mids], ("batch", "token", *right_bonds), sizes)
        whole = (len(outputs), out_shape)
        self.expand = Contraction(rights, (*right_batch, *right_bonds, *outputs), sizes, whole)
        fold_batch = ("batch",) if self.mid_batched or self.right_batched else ()
        self.fold = Contraction(mids + rights, (*fold_batch, *left_bonds, *outputs), sizes, whole)
        self.fold_batched = bool(fold_batch)
        sides = prod(sizes[m] for m in inputs), *out_shape
        self.dense_macs, self.macs_per_token = self.left_rank * prod(sides), self.left_rank * sum(sides)

    @property
    def summary(self) -> tuple[str, str, str]:
        """Left, Mid and Right in words."""
        return repr(self.kernel), repr(self.mix) if self.mid else "identity", repr(self.expand)

    @property
    def rank(self) -> int:
        """k, the width of the cut: the rank of an exact LoRA export."""
        return self.left_rank

    def _left_side(
        self, network: Network, terms: Mapping[str, Modes], sizes: Sizes, batched: Collection[str]
    ) -> list[str]:
        """The factors with an input mode, joined by those between (none per example) that make k smaller."""
        left = [f for f, term in terms.items() if set(term) & set(network.inputs)]
        outputs = [f for f, term in terms.items() if set(term) & set(network.outputs)]
        between = [f for f in terms if f not in (*left, *outputs, *batched)]
        return self._narrowest(left, between, terms, lambda side, width: width, sizes)

    def _right_side(
        self, network: Network, terms: Mapping[str, Modes], sizes: Sizes, batched: Collection[str]
    ) -> list[str]:
        """The factors with an output mode, joined by those between that make k' smaller; much, if per example."""
        right = [f for f, term in terms.items() if f not in self.left and set(term) & set(network.outputs)]
        between = [f for f in terms if f not in (*self.left, *right)]
        return self._narrowest(
            right, between, terms, lambda side, width: width * (4 if any(f in batched for f in side) else 1), sizes
        )

    def _narrowest(
        self,
        side: list[str],
        between: list[str],
        terms: Mapping[str, Modes],
        cost: Callable[[Collection[str], int], int],
        sizes: Sizes,
    ) -> list[str]:
        """`side` with those of the factors between that cost the least, and of these the fewest."""

        def weight(more: tuple[str, ...]) -> tuple[int, int]:
            inside = [*side, *more]
            width = prod(sizes[b] for b in self._bonds(terms, inside, [f for f in terms if f not in inside]))
            return cost(more, width), len(more)

        sides = chain.from_iterable(combinations(between, n) for n in range(len(between) + 1))
        best = min(sides, key=weight)
        return [f for f in terms if f in side or f in best]

    def _bonds(self, terms: Mapping[str, Modes], inside: Collection[str], outside: Collection[str]) -> Modes:
        rest = {mode for f in outside for mode in terms[f]}
        own = dict.fromkeys(mode for f in inside for mode in terms[f])
        return tuple(mode for mode in own if mode in rest and mode not in self._open)


def _carried(mode: str) -> str:
    return f"{mode}'"


def _carry_inputs(terms: dict[str, Modes], network: Network) -> list[Modes]:
    """Rename the input modes of factors that have output modes too; the identities from the ones to the others."""
    both = [f for f, term in terms.items() if set(term) & set(network.inputs) and set(term) & set(network.outputs)]
    carried = dict.fromkeys(mode for f in both for mode in terms[f] if mode in network.inputs)
    for f in both:
        terms[f] = tuple(_carried(mode) if mode in carried else mode for mode in terms[f])
    return [(mode, _carried(mode)) for mode in carried]
