"""A tensor network: factors over named modes, and its cut between the input side and the rest."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

from metalora.network.contraction import Contraction
from metalora.network.spec import INPUT_MODES, KNOWN_MODES, OUTPUT_MODES, Modes, parse_factors

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Network:
    """Factors over named modes; parsed once, from spec strings."""

    factors: Mapping[str, Modes]

    @classmethod
    def parse(cls, specs: Mapping[str, str]) -> "Network":
        """Parse {"A": "in r", "B": "r out"}; ValueError quotes the spec, the factor and the offending mode."""
        return cls(parse_factors(specs))

    @property
    def bonds(self) -> Modes:
        """Summed modes, in order of appearance."""
        modes = dict.fromkeys(mode for term in self.factors.values() for mode in term)
        return tuple(mode for mode in modes if mode not in KNOWN_MODES)

    def at(self, dropped: Collection[str]) -> "Network":
        """The network that is left when modes are indexed away, or do not exist at a target (kh, kw of a Linear)."""
        return Network({name: tuple(m for m in term if m not in dropped) for name, term in self.factors.items()})

    def shape(self, factor: str, sizes: Sizes) -> tuple[int, ...]:
        """The sizes of one factor's axes."""
        return tuple(sizes[mode] for mode in self.factors[factor])

    def num_params(self, sizes: Sizes) -> int:
        """Closed form: the sum over factors of the product of their modes' sizes."""
        return sum(prod(self.shape(factor, sizes)) for factor in self.factors)

    def max_rank(self, bond: str, sizes: Sizes) -> int:
        """The largest useful size of a bond: no larger than the input side or the output side of the weight."""
        sides = [prod(sizes.get(m, 1) for m in modes) for modes in (INPUT_MODES, OUTPUT_MODES)]
        return min(sides)


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
