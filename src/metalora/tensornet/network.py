"""A tensor network: factors over named modes, parsed from spec strings. Needs no torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, TypeVar

from metalora.tensornet.spec import INPUT_MODES, KNOWN_MODES, SIDES, Modes, parse_factors, parse_folds

T = TypeVar("T")
Sizes = Mapping[str, int]
Form = Literal["low_rank", "circuit", "bottleneck", "feature_wise"]

TRANSPOSED_AXES = {"in": "out", "out": "in"}


def transpose_axes(by_axis: Mapping[str, T]) -> dict[str, T]:
    """Exchange what belongs to "in" and to "out", as the transpose of a weight does.

    Example:
        >>> transpose_axes({"in": 768, "out": 3072, "layer": 12})
        {'out': 768, 'in': 3072, 'layer': 12}
    """
    return {TRANSPOSED_AXES.get(axis, axis): value for axis, value in by_axis.items()}


@dataclass(frozen=True)
class Network:
    """Factors over named modes; the same bond in several factors is summed over.

    Attributes:
        factors: Factor -> its modes, in the order of its axes.
        folds: Axis of the weight ("in", "out", or "hidden" of a bottleneck) -> the modes that it is split into.
        terms: Groups of factors; the groups' contractions are added. Empty: all factors are one product.
        form: What becomes of the terms. "low_rank": their sum is Delta W, split at its input side. "circuit": Delta W
            is the first term minus the second one, of too high a rank to be split. "bottleneck": there is no Delta W;
            the second term follows the first one after an activation. "feature_wise": the only factor multiplies the
            outputs, so that Delta W depends on W.
        biases: Factors that are added to the output, or before the activation, and take part in no contraction.

    Example:
        >>> network = Network.parse({"A": "in r", "B": "r out"})
        >>> network.bonds, network.num_params({"in": 768, "r": 8, "out": 768})
        (('r',), 12288)
    """

    factors: Mapping[str, Modes]
    folds: Mapping[str, Modes] = field(default_factory=dict)
    terms: tuple[tuple[str, ...], ...] = ()
    form: Form = "low_rank"
    biases: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls,
        specs: Mapping[str, str],
        folds: Mapping[str, str] | None = None,
        terms: Sequence[Sequence[str]] = (),
        form: Form = "low_rank",
        biases: Sequence[str] = (),
    ) -> "Network":
        """Parse spec strings, such as {"A": "in r", "B": "r out"}.

        Args:
            specs: Factor -> its modes, separated by blanks.
            folds: Axis -> the modes that it is split into, separated by blanks, the slowest first.
            terms: As the attribute.
            form: As the attribute.
            biases: As the attribute.

        Raises:
            ValueError: A spec is ill-formed (the message quotes the spec, the factor and the mode), or a factor is in
                none of the terms or in several.
        """
        parsed_folds = parse_folds(folds or {})
        if terms:
            factors_of_terms = [*biases, *(factor for term in terms for factor in term)]
            if sorted(factors_of_terms) != sorted(specs):
                raise ValueError(f"terms {terms}: each of the factors {', '.join(specs)} is in one of them")
        sides = {"output": "out"} if form == "feature_wise" else SIDES  # it scales the outputs, whatever the inputs
        factors = parse_factors(specs, parsed_folds, sides)
        return cls(factors, parsed_folds, tuple(map(tuple, terms)), form, tuple(biases))

    @cached_property
    def modes(self) -> Modes:
        """All modes, in order of appearance."""
        return tuple(dict.fromkeys(mode for modes in self.factors.values() for mode in modes))

    @cached_property
    def inputs(self) -> Modes:
        """The modes of the input side, in the order of the weight's axes: in (or what it folds into), kh, kw."""
        input_side = [mode for axis in INPUT_MODES for mode in self.folds.get(axis, (axis,))]
        return tuple(mode for mode in input_side if mode in self.modes)  # a Linear has no kernel modes

    @property
    def outputs(self) -> Modes:
        """The modes of the output side: out, or what it folds into."""
        return tuple(self.folds.get("out", ("out",)))

    @cached_property
    def weight_modes(self) -> frozenset[str]:
        """The modes that are axes of a weight, or that its axes fold into; without heads, which are a coordinate."""
        folded = {mode for modes in self.folds.values() for mode in modes}
        return frozenset({*INPUT_MODES, "out", *folded} - {"head"})

    @cached_property
    def bonds(self) -> Modes:
        """The modes that are summed over, in order of appearance."""
        folded = {mode for modes in self.folds.values() for mode in modes}
        return tuple(mode for mode in self.modes if mode not in KNOWN_MODES and mode not in folded)

    def without_modes(self, dropped: Collection[str], folds: Mapping[str, Modes] | None = None) -> "Network":
        """Return the network without some modes: those that an index selects from, or that a target does not have.

        Args:
            dropped: The modes, such as "layer" at one layer, or kh and kw of a Linear.
            folds: The folds of the result; None keeps them.

        Example:
            >>> Network.parse({"A": "in r", "B": "r layer out"}).without_modes(["layer"]).factors["B"]
            ('r', 'out')
        """
        factors = {name: tuple(mode for mode in modes if mode not in dropped) for name, modes in self.factors.items()}
        return replace(self, factors=factors, folds=self.folds if folds is None else folds)

    def with_composite(self, name: str, parts: Collection[str], modes: Modes) -> "Network":
        """Return the network with one factor in place of several.

        Args:
            name: The name of the new factor.
            parts: The factors that it replaces.
            modes: The modes of the new factor.

        Example:
            >>> network = Network.parse({"A": "in r", "C": "r c", "P": "c s", "B": "s out"})
            >>> list(network.with_composite("S", ["C", "P"], ("r", "s")).factors)
            ['A', 'B', 'S']
        """
        remaining = {factor: factor_modes for factor, factor_modes in self.factors.items() if factor not in parts}
        return replace(self, factors={**remaining, name: modes})

    def transposed(self) -> "Network":
        """Return the network of the transposed weight: inputs are outputs.

        Example:
            >>> Network.parse({"A": "in r", "B": "r out"}).transposed().factors
            {'A': ('out', 'r'), 'B': ('r', 'in')}
        """
        factors = {name: _transposed_modes(modes) for name, modes in self.factors.items()}
        folds = {axis: _transposed_modes(modes) for axis, modes in transpose_axes(self.folds).items()}
        return replace(self, factors=factors, folds=folds)

    def split_terms(self) -> list["Network"]:
        """Return one network for each term, without the biases; if there are no terms, one of all other factors."""
        all_factors = tuple(factor for factor in self.factors if factor not in self.biases)
        # a product without terms is its only term
        terms = self.terms or (all_factors,)
        return [Network({factor: self.factors[factor] for factor in term}, self.folds) for term in terms]

    def shape(self, factor: str, sizes: Sizes) -> tuple[int, ...]:
        """Return the shape of a factor, given the size of every mode."""
        return tuple(sizes[mode] for mode in self.factors[factor])

    def num_params(self, sizes: Sizes) -> int:
        """Return the number of parameters: the sum over factors of the product of their modes' sizes."""
        return sum(prod(self.shape(factor, sizes)) for factor in self.factors)

    def max_rank(self, bond: str, sizes: Sizes) -> int:
        """Return the largest useful size of a bond.

        If the bond alone links two parts of the network, it is the smaller of their products of open modes. Otherwise
        it is the smaller of the weight's input and output sides.

        Args:
            bond: The bond.
            sizes: The size of every mode; a mode that is missing has size one.

        Example:
            >>> Network.parse({"A": "in r", "B": "r out"}).max_rank("r", {"in": 768, "out": 10})
            10
        """
        # a bond that closes a cycle leaves its two ends in one component
        sides = [modes for modes in self._components_without(bond) if bond in modes]
        if len(sides) != 2:
            sides = [set(self.inputs), set(self.outputs)]
        first, second = sides
        common = first & second  # an index of both sides links them, so it is not open
        open_sides = [[mode for mode in side - common if mode not in self.bonds] for side in sides]
        return min(prod(sizes.get(mode, 1) for mode in side) for side in open_sides)

    def _components_without(self, bond: str) -> list[set[str]]:
        """The modes of the connected parts that are left if a bond joins nothing; its factors still have it."""
        links = {*self.bonds, "expert"} - {bond}  # experts are summed over, so they join factors as a bond does
        components: list[set[str]] = []
        for factor_modes in self.factors.values():
            modes = set(factor_modes)
            linked = [component for component in components if component & modes & links]
            separate = [component for component in components if component not in linked]
            components = [*separate, modes.union(*linked)]
        return components


def _transposed_modes(modes: Modes) -> Modes:
    return tuple(TRANSPOSED_AXES.get(mode, mode) for mode in modes)
