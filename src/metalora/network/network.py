"""A tensor network: factors over named modes; needs no torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

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
