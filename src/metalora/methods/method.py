"""What a method is: a declared network with its initialisation and its scale; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeVar

from metalora.methods.records import (
    AnyRank,
    Biased,
    Component,
    Components,
    Composite,
    FixedBonds,
    Mechanism,
    SplitRank,
    Tensorised,
)
from metalora.tensornet.formats import tt
from metalora.tensornet.network import Form, Network

FROM_WEIGHT = "from_weight"  # the initialisation of factors that a mechanism computes from the base's weight
FROM_DATA = "from_data"  # that of factors that `metalora.start_from_data` computes
INITS = ("zeros", "ones", "identity", "kaiming", "normal", "xavier", "orthogonal", "by_rank", "gate", "unit", "tiled")

ScaleRule = Literal["alpha/r", "alpha/sqrt(r)", "alpha"]
Rank = int | Mapping[str, int] | tuple[int, ...] | list[int]
AnyRecord = TypeVar("AnyRecord", bound=Mechanism)


@dataclass(frozen=True)
class Method:
    """A tensor-network adapter, as a declaration.

    Attributes:
        name: Name in the registry.
        title: Name in the literature.
        source: Paper or code that the method comes from.
        formula: ΔW as printed in its paper, with the number of the equation.
        factors: Factor -> spec string, such as {"A": "in r", "B": "r out"}; bonds are ranks.
        init: Factor -> one of `INITS`, or one with its number such as "normal:0.02", `FROM_WEIGHT` or
            `FROM_DATA`.
        count: Closed form of the trainable numbers of one network, in I, O, K (kernel size), R (rank), N (experts),
            L (layers), M (projections), H (heads), J (head size), T (tasks), and the sizes of digits by name.
        export: Closed form of the rank of the exact LoRA export at a wide target, or "none" if no LoRA equals
            the method.
        folds: Axis of the weight -> the modes that it is cut into, slowest first: {"out": "head hdim"}.
        terms: Groups of factors whose products are added (a shared LoRA and one per task); empty: one product.
        replicated_over: The coordinates that have a copy of the factors each: "target", "layer proj", "layer", "proj",
            or "" for one network of the whole model; or a mapping from factor to that. Coordinates that are modes of a
            factor are indexed by the target.
        frozen: Factors that are not learned: they are made from the seed and never saved.
        generated: Factors that a mapping net makes by default; their stored value is the condition-free c0.
        scale: What multiplies ΔW; r is the configured rank (the largest if there is one per bond).
        mechanisms: Records of what the method has beyond a product of factors (see `records`). Those that change
            values are applied in this order.
        notes: A remark for the documentation.

    Example:
        >>> from metalora.tensornet.formats import matrix
        >>> lora = Method(name="lora", title="LoRA", source="arXiv:2106.09685", formula="ΔW = A B",
        ...               factors=matrix("kh kw in", "out"), init={"A": "kaiming", "B": "zeros"}, count="R*(K*I + O)")
        >>> lora.rank_bonds
        ('r',)
    """

    name: str
    title: str
    source: str
    formula: str
    factors: Mapping[str, str]
    init: Mapping[str, str]
    count: str
    export: str = "R"
    folds: Mapping[str, str] = field(default_factory=dict)
    terms: tuple[tuple[str, ...], ...] = ()
    replicated_over: str | Mapping[str, str] = "target"
    frozen: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    scale: ScaleRule = "alpha/r"
    mechanisms: tuple[Mechanism, ...] = ()
    notes: str = field(default="", compare=False)  # a remark does not make another method

    # ---- mechanisms ------------------------------------------------------------------------------------------------
    def record(self, kind: type[AnyRecord]) -> AnyRecord | None:
        """The method's record of that kind, or None.

        Example:
            >>> from metalora.methods.records import Gated
            >>> from metalora.methods.registry import get_method
            >>> get_method("moe-lora").record(Gated).factors
            ('g',)
        """
        return next((record for record in self.mechanisms if isinstance(record, kind)), None)

    def has(self, kind: type[Mechanism]) -> bool:
        """Whether the method has a record of that kind."""
        return self.record(kind) is not None

    @property
    def form(self) -> Form:
        """How the network acts on an input: "low_rank", "circuit", "bottleneck" or "feature_wise"."""
        forms = [record.form for record in self.mechanisms if record.form != "low_rank"]
        return forms[0] if forms else "low_rank"

    @property
    def separate_factors(self) -> tuple[str, ...]:
        """Factors that are not part of the product, such as biases."""
        return tuple(factor for record in self.mechanisms for factor in record.separate_factors)

    @property
    def active_at_zero(self) -> tuple[str, ...]:
        """Factors whose zero does not make ΔW zero, such as gates and biases."""
        return tuple(factor for record in self.mechanisms for factor in record.active_at_zero)

    @property
    def composites(self) -> Mapping[str, str]:
        """Factors of the network that are contractions of stored ones, name -> the names of these."""
        record = self.record(Composite)
        return record.factors if record is not None else {}

    @property
    def mixes_slices(self) -> bool:
        """Whether the slices of a weight are mixed with the bonds, as in the code of FacT-TK."""
        record = self.record(Composite)
        return record is not None and record.mixed_slices

    @property
    def components(self) -> tuple[Component, ...]:
        """The methods that this one consists of, each on targets of its own; empty for most."""
        record = self.record(Components)
        return record.components if record is not None else ()

    @property
    def fixed_bonds(self) -> Mapping[str, str | int]:
        """Bonds whose sizes are not ranks -> the size, or the mode whose size it is."""
        record = self.record(FixedBonds)
        return record.sizes if record is not None else {}

    @property
    def frozen_initial(self) -> dict[str, str]:
        """Frozen start -> the factor that is its learned change, of a method that learns changes."""
        starts: dict[str, str] = {}
        for record in self.mechanisms:
            starts |= record.frozen_starts(tuple(self.factors))
        return starts

    # ---- the network -----------------------------------------------------------------------------------------------
    @cached_property
    def network(self) -> Network:
        """The parsed network; errors in a spec appear here, once."""
        starts = {start: self.factors[factor] for start, factor in self.frozen_initial.items()}
        # a start has the modes of its factor; a mechanism that learns changes replaces the terms by its own
        terms = self.terms
        for record in self.mechanisms:
            terms = record.terms(tuple(self.factors)) or terms
        return Network.parse({**self.factors, **starts}, self.folds, terms, self.form, self.separate_factors)

    @property
    def non_trainable(self) -> tuple[str, ...]:
        """The factors that are never learned, whatever the configuration says."""
        return (*self.frozen, *self.frozen_initial)

    @property
    def rank_bonds(self) -> tuple[str, ...]:
        """The bonds whose sizes are ranks."""
        return tuple(bond for bond in self.network.bonds if bond not in self.fixed_bonds)

    @property
    def uses_experts(self) -> bool:
        """Whether a factor has the expert mode."""
        return any("expert" in modes for modes in self.network.factors.values())

    @property
    def is_chain(self) -> bool:
        """Whether every factor shares one bond with the next, one with the one before, and none with any other."""
        bonds_of = [set(modes) & set(self.network.bonds) for modes in self.network.factors.values()]
        links = [left & right for left, right in zip(bonds_of, bonds_of[1:], strict=False)]
        single_links = all(len(link) == 1 for link in links)
        no_other_bonds = sum(map(len, bonds_of)) == 2 * len(links) == 2 * len(self.network.bonds)  # two ends a bond
        return single_links and no_other_bonds and not self.uses_experts

    # ---- who has a copy of a factor --------------------------------------------------------------------------------
    def replication_of(self, factor: str) -> frozenset[str]:
        """The coordinates that have a copy of the factor each; those of a target imply its layer and projection."""
        factor = self.frozen_initial.get(factor, factor)  # a frozen start has the copies of its factor
        coordinates = self.replicated_over
        if not isinstance(coordinates, str):
            coordinates = coordinates[factor]
        return frozenset(("target", "layer", "proj") if coordinates == "target" else coordinates.split())

    @property
    def shared(self) -> bool:
        """Whether targets have factors in common."""
        return any("target" not in self.replication_of(factor) for factor in self.factors)

    @property
    def coordinates(self) -> frozenset[str]:
        """Those of the coordinates layer and proj that decide what a target reads of the shared factors."""
        decisive = set(self.network.modes)
        for factor in self.factors:
            replication = self.replication_of(factor)
            if "target" not in replication:
                decisive |= replication
        return frozenset({"layer", "proj"} & decisive)

    # ---- variants --------------------------------------------------------------------------------------------------
    def reordered(self, order: Sequence[str]) -> Method:
        """The same tensor train with its modes in another order.

        A factor keeps the initialisation of its mode; factors are named by their place.

        Args:
            order: All modes of the train, such as ("in", "proj", "layer", "out").

        Raises:
            ValueError: The method is not a tensor train, or `order` is not an order of its modes.
        """
        bonds = self.network.bonds
        free_modes = {
            factor: [mode for mode in modes if mode not in bonds] for factor, modes in self.network.factors.items()
        }
        # The first core may have the kernel's modes too, "kh kw in": its last mode names it.
        factor_of = {modes[-1]: factor for factor, modes in free_modes.items() if modes}
        has_unnamed_core = len(factor_of) != len(free_modes)  # a core with bonds alone has no place in an order
        if not self.shared or not self.is_chain or has_unnamed_core:
            raise ValueError(
                f"method {self.name!r}: it is not a tensor train, so order={list(order)} does not mean anything"
            )
        if sorted(order) != sorted(factor_of):
            raise ValueError(
                f"method {self.name!r}: order is {list(order)}, expected an order of {', '.join(factor_of)}"
            )
        old_names = {f"G{place}": factor_of[mode] for place, mode in enumerate(order, start=1)}
        factors = tt({new: " ".join(free_modes[old]) for new, old in old_names.items()})
        return replace(self, factors=factors, init={new: self.init[old] for new, old in old_names.items()})

    def with_digits(self, digits: Mapping[str, str]) -> Method:
        """The same method for as many digits of each axis as the configuration gives; itself if it cannot change.

        Args:
            digits: Axis -> sizes of its digits, such as {"in": "16 8 8 4"}.

        Raises:
            ValueError: An axis that the method does not fold into digits.
        """
        # heads are a fold too, but their number is that of the model
        folded = [axis for axis, modes in self.network.folds.items() if "head" not in modes]
        for axis in digits:
            if axis not in folded:
                foldable = ", ".join(folded) or "nothing"
                raise ValueError(f"method {self.name!r}: digits of {axis!r}, it folds {foldable}")
        # "64 4 3, 16 16 12" gives digits for several widths, the same number of them for each
        counts = {axis: len(sizes.split(",")[0].split()) for axis, sizes in digits.items()}
        is_unchanged = all(counts.get(axis, len(modes)) == len(modes) for axis, modes in self.network.folds.items())
        tensorised = self.record(Tensorised)
        if is_unchanged or tensorised is None:
            return self
        return tensorised.with_axis_factors(counts)

    def interleaved(self) -> Method:
        """The same network with position j of head h at j H + h, as in TensLoRA's code; models have it at h J + j.

        Raises:
            ValueError: The method has no heads.
        """
        # position j H + h: the head is the fastest digit
        folds = {axis: " ".join(reversed(modes)) for axis, modes in self.network.folds.items() if "head" in modes}
        if not folds:
            raise ValueError(f"method {self.name!r}: it has no heads, so order='tenslora' does not mean anything")
        return replace(self, folds={**self.folds, **folds})

    # ---- sizes of bonds --------------------------------------------------------------------------------------------
    def bond_sizes(self, rank: Rank, experts: int) -> dict[str, int]:
        """The size of every bond whose size is a rank.

        Args:
            rank: One rank for all bonds, or one per bond, in their order or by name.
            experts: Size of the expert mode.

        Raises:
            ValueError: A rank that is not a whole number above zero, or a bond that the method does not have.
        """
        sizes = self._rank_by_bond(rank)
        for bond, size in sizes.items():
            if size < 1:
                raise ValueError(f"method {self.name!r}: rank of bond {bond!r} is {size}, expected at least 1")
        if self.uses_experts and experts < 1:
            raise ValueError(f"method {self.name!r}: experts is {experts}, expected at least 1")
        if self.mixes_slices and len({*sizes.values()}) > 1:  # (bond, bond, slice) is read as (bond, slice, bond)
            raise ValueError(f"method {self.name!r}: its slices are mixed with its bonds, so rank is one number")
        if self.has(SplitRank):
            return {bond: self._per_expert(size, experts) for bond, size in sizes.items()}
        return sizes

    def _rank_by_bond(self, rank: Rank) -> dict[str, int]:
        bonds = self.rank_bonds
        if isinstance(rank, Mapping):
            sizes = dict(rank)
        elif isinstance(rank, (list, tuple)):
            if len(rank) != len(bonds):
                raise ValueError(f"method {self.name!r}: rank has {len(rank)} numbers for the bonds {', '.join(bonds)}")
            sizes = dict(zip(bonds, rank, strict=True))
        else:
            sizes = dict.fromkeys(bonds, rank)
        # a bool is an int in Python
        if any(not isinstance(size, int) or isinstance(size, bool) for size in sizes.values()):
            raise ValueError(f"method {self.name!r}: rank is {rank!r}, expected a whole number or one per bond")
        if set(sizes) != set(bonds):
            raise ValueError(f"method {self.name!r}: rank names {', '.join(sizes)}, its bonds are {', '.join(bonds)}")
        return sizes

    def _per_expert(self, size: int, experts: int) -> int:
        if size % experts:
            raise ValueError(f"method {self.name!r}: rank {size} is not a multiple of its {experts} experts")
        return size // experts


def combine(
    *components: Component, name: str, title: str, source: str, formula: str, count: str, scale: ScaleRule, notes: str
) -> Method:
    """A method that consists of several, each on targets of its own.

    Args:
        components: The methods, whose factors and bonds have different names, and the targets that they apply to.
        name: As in `Method`, like all other arguments.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> [component.method.name for component in get_method("cara").components]
        ['cara-attention', 'cara-rest']
    """
    methods = [component.method for component in components]
    mechanisms: list[Mechanism] = [Components(components)]
    # records of the components of which the combined method itself is asked
    if biases := tuple(factor for method in methods for factor in method.separate_factors):
        mechanisms.append(Biased(biases))
    if all(method.has(AnyRank) for method in methods):
        mechanisms.append(AnyRank())
    factors: dict[str, str] = {}
    init: dict[str, str] = {}
    folds: dict[str, str] = {}
    replicated_over: dict[str, str] = {}
    for method in methods:
        factors |= method.factors
        init |= method.init
        folds |= method.folds
        replicated_over |= {factor: " ".join(method.replication_of(factor)) for factor in method.factors}
    return Method(
        name=name,
        title=title,
        source=source,
        formula=formula,
        factors=factors,
        init=init,
        count=count,
        folds=folds,
        terms=tuple(
            tuple(factor for factor in method.factors if factor not in method.separate_factors) for method in methods
        ),
        replicated_over=replicated_over,
        scale=scale,
        mechanisms=tuple(mechanisms),
        notes=notes,
    )
