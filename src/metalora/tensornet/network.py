"""A tensor network: factors over named modes; needs no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, TypeVar

from metalora.tensornet.spec import INPUT_MODES, KNOWN_MODES, Modes, parse_factors, parse_folds

T = TypeVar("T")
Sizes = Mapping[str, int]
Form = Literal["cut", "circuit", "bottleneck"]


TURNED = {"in": "out", "out": "in"}


def turned(by_axis: Mapping[str, T]) -> dict[str, T]:
    """What belongs to each axis, of the transpose."""
    return {TURNED.get(axis, axis): value for axis, value in by_axis.items()}


@dataclass(frozen=True)
class Network:
    """Factors over named modes, parsed once from spec strings; `folds` says which modes make up an axis.

    terms: groups of factors whose contractions are added; empty: all factors are one product
    form: "cut": Delta W is cut in three; "circuit": it is the first term less the second, too wide to be cut;
        "bottleneck": no Delta W, the second term follows the first behind an activation
    biases: factors that are added instead, to the output or before the activation
    """

    factors: Mapping[str, Modes]
    folds: Mapping[str, Modes] = field(default_factory=dict)
    terms: tuple[tuple[str, ...], ...] = ()
    form: Form = "cut"
    biases: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        specs: Mapping[str, str],
        folds: Mapping[str, str] | None = None,
        terms: Sequence[Sequence[str]] = (),
        form: Form = "cut",
        biases: Sequence[str] = (),
    ) -> "Network":
        """Parse {"A": "in r", "B": "r out"}; ValueError quotes the spec, the factor and the offending mode."""
        parsed = parse_folds(folds or {})
        if terms and sorted([*biases, *(factor for term in terms for factor in term)]) != sorted(specs):
            raise ValueError(f"terms {terms}: each of the factors {', '.join(specs)} is in one of them")
        return cls(parse_factors(specs, parsed), parsed, tuple(map(tuple, terms)), form, tuple(biases))

    @property
    def modes(self) -> Modes:
        """Every mode, in order of appearance."""
        return tuple(dict.fromkeys(mode for term in self.factors.values() for mode in term))

    @property
    def inputs(self) -> Modes:
        """The modes of the input side, in the order of the weight's axes: in (or what it folds into), kh, kw."""
        sides = [mode for axis in INPUT_MODES for mode in self.folds.get(axis, (axis,))]
        return tuple(mode for mode in sides if mode in self.modes)

    @property
    def outputs(self) -> Modes:
        """The modes of the output side: out, or what it folds into."""
        return tuple(self.folds.get("out", ("out",)))

    @property
    def edges(self) -> frozenset[str]:
        """The modes that are axes of the weight, whole or folded; heads are counted, like layers."""
        return frozenset({*INPUT_MODES, "out", *(mode for modes in self.folds.values() for mode in modes)} - {"head"})

    @property
    def bonds(self) -> Modes:
        """Summed modes, in order of appearance."""
        folded = {mode for modes in self.folds.values() for mode in modes}
        return tuple(mode for mode in self.modes if mode not in KNOWN_MODES and mode not in folded)

    def at(self, dropped: Collection[str], folds: Mapping[str, Modes] | None = None) -> "Network":
        """The network that is left when modes are indexed away, or do not exist at a target (kh, kw of a Linear)."""
        kept = {name: tuple(m for m in term if m not in dropped) for name, term in self.factors.items()}
        return Network(kept, self.folds if folds is None else folds, self.terms, self.form, self.biases)

    def composed(self, name: str, parts: Sequence[str], modes: Modes) -> "Network":
        """The network with a factor of these modes in place of some."""
        kept = {factor: term for factor, term in self.factors.items() if factor not in parts}
        return replace(self, factors={**kept, name: modes})

    def turned(self) -> "Network":
        """The network of the transpose: inputs are outputs."""
        factors = {name: tuple(TURNED.get(mode, mode) for mode in term) for name, term in self.factors.items()}
        folds = {axis: tuple(TURNED.get(mode, mode) for mode in modes) for axis, modes in turned(self.folds).items()}
        return Network(factors, folds, self.terms, self.form, self.biases)

    def summands(self) -> list["Network"]:
        """The networks whose sum this is."""
        every = self.terms or (tuple(f for f in self.factors if f not in self.biases),)
        return [Network({f: self.factors[f] for f in term}, self.folds) for term in every]

    def shape(self, factor: str, sizes: Sizes) -> tuple[int, ...]:
        """The sizes of one factor's axes."""
        return tuple(sizes[mode] for mode in self.factors[factor])

    def num_params(self, sizes: Sizes) -> int:
        """Closed form: the sum over factors of the product of their modes' sizes."""
        return sum(prod(self.shape(factor, sizes)) for factor in self.factors)

    def max_rank(self, bond: str, sizes: Sizes) -> int:
        """The largest useful size of a bond.

        A bond that is the only link between two parts of the network: the smaller of their products of open modes.
        Any other: the smaller of the weight's input and output sides.
        """
        parts = [part for part in self._parts(bond) if bond in part]
        if len(parts) != 2:
            parts = [set(self.inputs), set(self.outputs)]
        common = {m for m in self.modes if sum(m in part for part in parts) > 1}  # an index of both parts links them
        return min(prod(sizes.get(m, 1) for m in part - common if m not in self.bonds) for part in map(set, parts))

    def _parts(self, bond: str) -> list[set[str]]:
        """The modes of the connected parts that are left when a bond is cut; those that it joined have it still."""
        parts: list[set[str]] = []
        for term in self.factors.values():
            modes, links = set(term), {*self.bonds, "expert"} - {bond}
            joined = [part for part in parts if part & modes & links]
            parts = [part for part in parts if part not in joined] + [modes.union(*joined)]
        return parts
