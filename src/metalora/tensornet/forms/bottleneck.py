"""Two maps with room for an activation between them: a network that no Delta W can stand for."""

from collections.abc import Collection
from math import prod

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes


class Bottleneck:
    """Down: in -> hidden and up: hidden -> out, both planned once with the real sizes, and a bias for each.

    `down`, `up`, `inner` and `outer` name factors; the contractions give (b?, *hidden, in) and (b?, *hidden, out), with
    b where a factor of that map differs by example.
    """

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        self.down, self.up = network.terms
        hidden = network.folds["hidden"]
        self.inner = [f for f in network.biases if set(network.factors[f]) <= set(hidden)]
        self.outer = [f for f in network.biases if f not in self.inner]
        self.width = prod(sizes[m] for m in hidden)
        self.hidden_modes = len(hidden)
        self.down_batched, self.up_batched = (any(f in batched for f in side) for side in network.terms)
        sizes = {"batch": 8, **sizes}
        inside, outside = (prod(sizes[m] for m in side) for side in (network.inputs, network.outputs))

        def contraction(names: Collection[str], own: tuple[str, ...], size: int) -> Contraction:
            lead = [("batch",) if f in batched else () for f in names]
            terms = [one + network.factors[f] for one, f in zip(lead, names, strict=True)]
            return Contraction(terms, (*max(lead), *hidden, *own), sizes, (len(own), (size,)))

        self.make_down = contraction(self.down, network.inputs, inside)
        self.make_up = contraction(self.up, network.outputs, outside)
        self.macs_per_token = self.width * (inside + outside)

    @property
    def rank(self) -> int:
        """The width of the bottleneck."""
        return self.width

    @property
    def summary(self) -> tuple[str, str, str]:
        """Down, what is between, and up in words."""
        return repr(self.make_down), "activation", repr(self.make_up)
