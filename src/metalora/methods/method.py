"""What a method is: a declared network with its initialisation and scale."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from metalora.tensornet.formats import tt
from metalora.tensornet.network import Form, Network

INITS = ("zeros", "ones", "identity", "kaiming", "normal", "xavier", "orthogonal", "by_rank", "gate", "unit", "tiled")


@dataclass(frozen=True)
class Method:
    """A tensor network adapter, declared.

    name, title   registry name, and the name in the literature
    formula       Delta W as printed in its paper, with its number
    factors       factor -> spec string; bonds are ranks
    init          factor -> one of INITS, or one with its number such as "normal:0.02" (fans are told by the modes)
    count         closed form of the trainable numbers of one network, in I, O, K (kernel size), R (rank), N (experts),
                  L (layers), M (projections), H (heads), J (head size), T (tasks), and the sizes of digits by name
    export        closed form of the rank of its exact LoRA export, the width of the cut, at a wide target; or "none"
    folds         axis of the weight -> the modes it is cut into, slowest first ({"out": "head hdim"})
    terms         groups of factors whose products are added (a shared LoRA and one a task); empty: one product
    form          "cut": Delta W is the network; "circuit": gates as wide as the weight, applied one after another, and
                  if none of them starts at zero, less what they were at the start: what is learned is the change of a
                  gate, `init` that of its start; "bottleneck": the maps of the two terms behind the layer, from its
                  output to `hidden` numbers (config.digits gives others) and back, with the `activation` between them:
                  no Delta W
    biases        factors that are added with the scale, not multiplied: to the output, which they have as "out" even
                  where it is folded, or to what is hidden
    wires         bond -> the mode whose size it has, or its size; the other bonds are ranks
    turned        "heads": where the heads are on the input side, behind the attention, the network is that of the
                  weight's transpose; "chunks": that of the transpose unless the weight is cut along its inputs
    parts         methods that take the targets among them; its other fields are theirs together (see `joined`)
    where         of a part: "heads": it takes the projections whose outputs are heads (query, key, value); "rest"
    refold        makes the same method for other numbers of digits, axis -> how many; None: they are as declared
    copies        the coordinates of which each has factors of its own: "target", "layer proj", "layer", "proj", or ""
                  for one network of the whole model; or factor -> that. Targets index the coordinates that are modes
    frozen        factors that are not learned: made from the seed, never saved
    generated     factors that a mapping net makes by default; their stored value is the condition-free c0
    made          factors of the network that are contractions of learned ones: {"g": "E G"}
    mixed_slices  whether, of a weight that is cut into slices, the made factor's numbers (a, b, slice) are read as
                  (a, slice, b), or (b, slice, a) if its inputs are cut, as if by a reshape
    gates         factors whose values pass through a softmax over the expert mode, at `temperature`
    scale         what multiplies Delta W; r is the configured rank (the largest, if there is one per bond)
    any_rank      a rank above what the modes allow is taken as it is, as published ranks are, unless config.clip_rank
    split_rank    the rank is divided by the number of experts (r/N each)
    starts_as_base  Delta W is zero at the start; else `why` says why not
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
    form: Form = "cut"
    activation: str = ""
    hidden: int = 0
    biases: tuple[str, ...] = ()
    wires: Mapping[str, str | int] = field(default_factory=dict)
    turned: Literal["", "heads", "chunks"] = ""
    parts: "tuple[Method, ...]" = ()
    where: Literal["", "heads", "rest"] = ""
    refold: "Callable[[Mapping[str, int]], Method] | None" = field(default=None, compare=False, repr=False)
    copies: str | Mapping[str, str] = "target"
    frozen: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    mixed_slices: bool = False
    gates: tuple[str, ...] = ()
    temperature: float = 1.0
    scale: Literal["alpha/r", "alpha/sqrt(r)", "alpha"] = "alpha/r"
    split_rank: bool = False
    any_rank: bool = False
    starts_as_base: bool = True
    why: str = ""
    notes: str = field(default="", compare=False)

    @cached_property
    def network(self) -> Network:
        """The parsed network; spec errors appear here, once."""
        starts = {start: self.factors[factor] for start, factor in self.starts.items()}
        terms = (tuple(self.factors), tuple(starts)) if starts else self.terms
        return Network.parse({**self.factors, **starts}, self.folds, terms, self.form, self.biases)

    @property
    def starts(self) -> dict[str, str]:
        """Frozen start -> the factor that is its learned change, for a circuit that does not start at zero."""
        if self.form != "circuit" or "zeros" in self.init.values():
            return {}
        return {f"{factor}_0": factor for factor in self.factors}

    @property
    def fixed(self) -> tuple[str, ...]:
        """The factors that are never learned."""
        return (*self.frozen, *self.starts)

    @property
    def ranked(self) -> tuple[str, ...]:
        """The bonds whose sizes are ranks."""
        return tuple(bond for bond in self.network.bonds if bond not in self.wires)

    def takes(self, heads: str) -> bool:
        """Whether a part takes a target whose heads are on that side ("in", "out", or "" for none)."""
        return not self.where or (self.where == "heads") == (heads == "out")

    def copies_of(self, factor: str) -> frozenset[str]:
        """The coordinates of which each has a copy of the factor; those of a target imply its layer and projection."""
        factor = self.starts.get(factor, factor)
        copies = self.copies if isinstance(self.copies, str) else self.copies[factor]
        return frozenset(("target", "layer", "proj") if copies == "target" else copies.split())

    @property
    def shared(self) -> bool:
        """Whether targets have factors in common."""
        return any("target" not in self.copies_of(factor) for factor in self.factors)

    @property
    def coordinates(self) -> frozenset[str]:
        """The coordinates, of layer and proj, that tell what a target reads of common factors."""
        copies = (self.copies_of(factor) for factor in self.factors)
        return frozenset(
            {"layer", "proj"} & {*self.network.modes, *(m for c in copies if "target" not in c for m in c)}
        )

    @property
    def _own_modes(self) -> dict[str, list[str]]:
        return {f: [m for m in term if m not in self.network.bonds] for f, term in self.network.factors.items()}

    @property
    def is_chain(self) -> bool:
        """Whether every factor shares one bond with the next, one with the one before, and none with any other."""
        terms = [set(term) & set(self.network.bonds) for term in self.network.factors.values()]
        links = [a & b for a, b in zip(terms, terms[1:], strict=False)]
        return (
            all(len(link) == 1 for link in links)
            and sum(map(len, terms)) == 2 * len(links) == 2 * len(self.network.bonds)
            and not self.uses_experts
        )

    def reordered(self, order: Sequence[str]) -> "Method":
        """The same chain with its modes in another order; ValueError for a method that is no chain, or another order.

        A factor keeps the initialisation of its mode; factors are named by their place.
        """
        own = self._own_modes
        modes = {term[-1]: factor for factor, term in own.items() if term}
        if not self.shared or not self.is_chain or len(modes) != len(own):
            raise ValueError(f"method {self.name!r}: it is no tensor train, so order={list(order)} means nothing")
        if sorted(order) != sorted(modes):
            raise ValueError(f"method {self.name!r}: order is {list(order)}, expected an order of {', '.join(modes)}")
        names = {f"G{k}": modes[mode] for k, mode in enumerate(order, start=1)}
        factors = tt({new: " ".join(own[old]) for new, old in names.items()})
        return replace(self, factors=factors, init={new: self.init[old] for new, old in names.items()})

    def folded(self, digits: Mapping[str, str]) -> "Method":
        """The same method for as many digits of each axis as are given, {"in": "16 8 8 4"}; itself if it cannot.

        ValueError: an axis that the method does not fold into digits.
        """
        into = [axis for axis, modes in self.network.folds.items() if "head" not in modes]
        for axis in digits:
            if axis not in into:
                raise ValueError(f"method {self.name!r}: digits of {axis!r}, it folds {', '.join(into) or 'nothing'}")
        counts = {axis: len(words.split(",")[0].split()) for axis, words in digits.items()}
        same = all(counts.get(axis, len(modes)) == len(modes) for axis, modes in self.network.folds.items())
        return self if same or self.refold is None else self.refold(counts)

    def interleaved(self) -> "Method":
        """The same network with position j of head h at j H + h, as in TensLoRA's code; models have it at h J + j."""
        folds = {axis: " ".join(reversed(modes)) for axis, modes in self.network.folds.items() if "head" in modes}
        if not folds:
            raise ValueError(f"method {self.name!r}: it has no heads, so order='tenslora' means nothing")
        return replace(self, folds={**self.folds, **folds})

    def bond_sizes(self, rank: int | Mapping[str, int] | Sequence[int], experts: int) -> dict[str, int]:
        """The size of every bond for a rank (one, or one a bond in order or by name); ValueError if it cannot be."""
        bonds = self.ranked
        if isinstance(rank, (list, tuple)):
            if len(rank) != len(bonds):
                raise ValueError(f"method {self.name!r}: rank has {len(rank)} numbers for the bonds {', '.join(bonds)}")
            rank = dict(zip(bonds, rank, strict=True))
        sizes = dict(rank) if isinstance(rank, Mapping) else dict.fromkeys(bonds, rank)
        if any(not isinstance(size, int) or isinstance(size, bool) for size in sizes.values()):
            raise ValueError(f"method {self.name!r}: rank is {rank!r}, expected a whole number or one per bond")
        if set(sizes) != set(bonds):
            raise ValueError(f"method {self.name!r}: rank names {', '.join(sizes)}, its bonds are {', '.join(bonds)}")
        for bond, size in sizes.items():
            if size < 1:
                raise ValueError(f"method {self.name!r}: rank of bond {bond!r} is {size}, expected at least 1")
        if self.uses_experts and experts < 1:
            raise ValueError(f"method {self.name!r}: experts is {experts}, expected at least 1")
        if self.mixed_slices and len({*sizes.values()}) > 1:
            raise ValueError(f"method {self.name!r}: its slices are mixed with its bonds, so rank is one number")
        if self.split_rank:
            sizes = {bond: self._per_expert(size, experts) for bond, size in sizes.items()}
        return sizes

    def _per_expert(self, size: int, experts: int) -> int:
        if size % experts:
            raise ValueError(f"method {self.name!r}: rank {size} is not a multiple of its {experts} experts")
        return size // experts

    @property
    def uses_experts(self) -> bool:
        """Whether a factor has the expert mode."""
        return any("expert" in term for term in self.network.factors.values())


def joined(*parts: Method, **fields: Any) -> Method:
    """A method of several parts, each on targets of its own; their factors and bonds have different names.

    fields: those of `Method` that the parts do not say, such as name and formula
    """

    def together(name: str) -> dict[str, Any]:
        return {key: value for part in parts for key, value in getattr(part, name).items()}

    return Method(
        factors=together("factors"),
        init=together("init"),
        folds=together("folds"),
        terms=tuple(tuple(f for f in part.factors if f not in part.biases) for part in parts),
        biases=tuple(factor for part in parts for factor in part.biases),
        copies={f: " ".join(part.copies_of(f)) for part in parts for f in part.factors},
        parts=parts,
        **fields,
    )
