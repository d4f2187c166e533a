"""Mechanisms that a few methods need beyond a product of factors, each a small frozen record; imports no torch.

A record only says what a method has. What it does is written once:

| record                | served by                              |
|-----------------------|----------------------------------------|
| `Gated`               | `adapters/mechanisms/gated.py`         |
| `Composite`           | `adapters/mechanisms/composite.py`     |
| `GateCircuit`         | `adapters/mechanisms/frozen_start.py`  |
| `StartFromWeight`     | `adapters/mechanisms/weight_start.py`  |
| `NonlinearBottleneck` | `adapters/layers/bottleneck.py`        |
| `FeatureWise`         | `adapters/layers/feature_wise.py`      |
| `Biased`              | `adapters/layers/base.py`              |
| `Magnitude`           | `adapters/mechanisms/magnitude.py`     |
| `Transposed`          | `adapters/layout/coordinates.py`       |
| `FixedBonds`          | `adapters/layout/bonds.py`             |
| `AnyRank`             | `adapters/layout/bonds.py`             |
| `Components`          | `adapters/layout/build.py`             |
| `SplitRank`           | `Method.bond_sizes`                    |
| `Tensorised`          | `Method.with_digits`                   |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from metalora.tensornet.network import Form

if TYPE_CHECKING:
    from metalora.methods.method import Method


class Mechanism:
    """The base of all records: what the rest of the library may ask of any of them.

    Attributes:
        form: How the network acts on an input: "low_rank", "circuit", "bottleneck" or "feature_wise".
    """

    # a class variable, not a field: it is the same for all records of a kind, and never declared
    form: ClassVar[Form] = "low_rank"

    @property
    def separate_factors(self) -> tuple[str, ...]:
        """Factors that are not part of the product and have the whole output axis, such as biases."""
        return ()

    @property
    def active_at_zero(self) -> tuple[str, ...]:
        """Factors whose zero does not make the product zero, such as the logits of a softmax."""
        return ()

    def frozen_starts(self, factors: Sequence[str]) -> dict[str, str]:
        """Frozen start -> the factor that is its learned change, of a mechanism that learns changes.

        Args:
            factors: The declared factors of the method.
        """
        return {}

    def terms(self, factors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The groups of factors and starts whose products the network consists of; empty for the declared terms."""
        return ()


@dataclass(frozen=True)
class Gated(Mechanism):
    """Factors whose values pass through softmax(value / temperature) over their last mode, the experts.

    Attributes:
        factors: The factors that hold the logits.
        temperature: Divides the logits.

    Example:
        >>> Gated(("g",), temperature=0.1).active_at_zero
        ('g',)
    """

    factors: tuple[str, ...]
    temperature: float = 1.0

    @property
    def active_at_zero(self) -> tuple[str, ...]:
        """The gates: equal logits give equal weights."""
        return self.factors


@dataclass(frozen=True)
class Composite(Mechanism):
    """Factors of the network that are contractions of stored ones.

    Attributes:
        factors: Name -> the stored factors that are contracted, such as {"g": "E G"}.
        mixed_slices: True if the numbers (a, b, slice) of a weight that is cut into slices are read as (a, slice, b),
            or as (b, slice, a) if its inputs are cut, as if by a reshape.

    Example:
        >>> Composite({"g": "E G"}).factors["g"]
        'E G'
    """

    factors: Mapping[str, str]
    mixed_slices: bool = False


@dataclass(frozen=True)
class GateCircuit(Mechanism):
    """The factors are gates as wide as the weight, applied one after another.

    Attributes:
        learns_change: True if ΔW = N(T0 + T) − N(T0): the method's `init` initialises the frozen T0, and the trained T
            starts at zero. False if ΔW = N(T), and one of the gates starts at zero.

    Example:
        >>> GateCircuit(learns_change=True).terms(["T12", "T13"])
        (('T12', 'T13'), ('T12_0', 'T13_0'))
    """

    learns_change: bool = False
    form: ClassVar[Form] = "circuit"

    def frozen_starts(self, factors: Sequence[str]) -> dict[str, str]:
        """T0 -> T for every gate, if a change is learned."""
        return {f"{factor}_0": factor for factor in factors} if self.learns_change else {}

    def terms(self, factors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """N(T) and N(T0), if a change is learned."""
        return (tuple(factors), tuple(self.frozen_starts(factors))) if self.learns_change else ()


@dataclass(frozen=True)
class StartFromWeight(Mechanism):
    """The two factors of a LoRA start from a decomposition of the base's weight, and the base stays as it is.

    ΔW = (A0 + A) (B0 + B) − A0 B0 = A0 B + A (B0 + B): the frozen A0 and B0 are computed from the base's weight W, so
    they are not saved; the learned A and B are changes that start at zero. With W − s A0 B0 as the frozen weight this
    is LoRA that starts at s A0 B0, as published; s is the scale.

    Attributes:
        decomposition: "svd": s A0 B0 is the part of the r largest singular values of W, each factor with the square
            roots of these (PiSSA); "qr": A0 and B0 are the first r rows of R and columns of Q, W^T = Q R (OLoRA);
            "data": they come from W and the inputs (CorDA, `metalora.start_from_data`), and they are saved.

    Example:
        >>> StartFromWeight("svd").terms(["A", "B"])
        (('A_0', 'B'), ('A', 'B_0'))
    """

    decomposition: Literal["svd", "qr", "data"]

    def frozen_starts(self, factors: Sequence[str]) -> dict[str, str]:
        """A0 -> A and B0 -> B."""
        left, right = factors
        return {f"{left}_0": left, f"{right}_0": right}

    def terms(self, factors: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """A0 B and A (B0 + B); the handler adds B to B0."""
        left, right = factors
        # two products are enough for A0 B + A B0 + A B, since the handler makes the last start B0 + B
        return (f"{left}_0", right), (left, f"{right}_0")


@dataclass(frozen=True)
class NonlinearBottleneck(Mechanism):
    """The maps of the two terms follow the layer, with an activation between them; there is no ΔW.

    Attributes:
        hidden: Width between the two maps, unless `config.digits["hidden"]` gives another.
        activation: Name of the activation, such as "tanh".

    Example:
        >>> NonlinearBottleneck(hidden=64, activation="tanh").form
        'bottleneck'
    """

    hidden: int
    activation: str
    form: ClassVar[Form] = "bottleneck"


@dataclass(frozen=True)
class FeatureWise(Mechanism):
    """The only factor of the product multiplies the features of the layer's output: y = z + γ ⊙ z, z = W x + b.

    Example:
        >>> FeatureWise().form
        'feature_wise'
    """

    form: ClassVar[Form] = "feature_wise"


@dataclass(frozen=True)
class Biased(Mechanism):
    """Factors that are added, multiplied by the scale: to the output, or to the hidden numbers of a bottleneck.

    Attributes:
        factors: The biases; their mode `out` is the whole output, even if the other factors fold it.

    Example:
        >>> Biased(("b", "c")).separate_factors
        ('b', 'c')
    """

    factors: tuple[str, ...]

    @property
    def separate_factors(self) -> tuple[str, ...]:
        """The biases."""
        return self.factors

    @property
    def active_at_zero(self) -> tuple[str, ...]:
        """The biases: a sum has a gradient at zero."""
        return self.factors


@dataclass(frozen=True)
class Magnitude(Mechanism):
    """The norm of each output's weights is learned on its own: W + ΔW = (|W| + d) ⊙ (W + A B) / |W + A B|.

    Attributes:
        factor: The change d of the magnitude; its mode `out` is the whole output.

    Example:
        >>> Magnitude("d").separate_factors
        ('d',)
    """

    factor: str

    @property
    def separate_factors(self) -> tuple[str, ...]:
        """The change of the magnitude."""
        return (self.factor,)

    @property
    def active_at_zero(self) -> tuple[str, ...]:
        """The change of the magnitude: a sum has a gradient at zero."""
        return (self.factor,)


@dataclass(frozen=True)
class Transposed(Mechanism):
    """At some targets the network is that of the weight's transpose.

    Attributes:
        when: "heads": at targets whose heads are on the input side (the projection behind the attention);
            "chunks": everywhere except at weights that are cut along their inputs.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> get_method("lorta-auto").record(Transposed).when
        'heads'
    """

    when: Literal["heads", "chunks"]


@dataclass(frozen=True)
class Tensorised(Mechanism):
    """The method exists for any number of digits that an axis is folded into.

    Attributes:
        with_axis_factors: Makes the method for other numbers of digits, axis -> number of digits.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> list(get_method("tt-lora").with_digits({"in": "24 32", "out": "24 32"}).factors)
        ['G1', 'G2', 'G3', 'G4']
    """

    # not compared: a function is equal to itself alone, and two equal declarations are one method
    with_axis_factors: Callable[[Mapping[str, int]], Method] = field(compare=False, repr=False)


@dataclass(frozen=True)
class FixedBonds(Mechanism):
    """Bonds whose sizes are not ranks.

    Attributes:
        sizes: Bond -> its size, or the mode whose size it has.

    Example:
        >>> FixedBonds({"e": 64, "b11": "o1"}).sizes["e"]
        64
    """

    sizes: Mapping[str, str | int]


@dataclass(frozen=True)
class SplitRank(Mechanism):
    """The configured rank is divided by the number of experts: each expert has rank r / N.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> get_method("moe-lora").bond_sizes(8, experts=4)
        {'r': 2}
    """


@dataclass(frozen=True)
class AnyRank(Mechanism):
    """A rank above what the modes allow is accepted, as published ranks are, unless `config.clip_rank` lowers it.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> get_method("vera").has(AnyRank)
        True
    """


@dataclass(frozen=True)
class Component:
    """A method that is used on some of the targets only.

    Attributes:
        method: The method.
        applies_to: "heads": to projections whose outputs are heads (query, key, value); "rest": to all others.

    Example:
        >>> from metalora.methods.cara import CARA_ATTENTION
        >>> component = Component(CARA_ATTENTION, applies_to="heads")
        >>> component.accepts("out"), component.accepts("in"), component.accepts("")
        (True, False, False)
    """

    method: Method
    applies_to: Literal["heads", "rest"]

    def accepts(self, heads: str) -> bool:
        """Whether the component adapts a target whose heads are on that side ("in", "out", or "" for none)."""
        return (self.applies_to == "heads") == (heads == "out")


@dataclass(frozen=True)
class Components(Mechanism):
    """The method consists of other methods, each on targets of its own; see `combine`.

    Attributes:
        components: The methods and the targets that they apply to.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> [component.applies_to for component in get_method("cara").record(Components).components]
        ['heads', 'rest']
    """

    components: tuple[Component, ...]
