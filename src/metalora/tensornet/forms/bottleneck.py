"""Two maps with room for an activation between them: a network that no Delta W can stand for."""

from collections.abc import Collection
from math import prod

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import Modes

PLANNED_EXAMPLES = 8  # the size of batch for which the order of the contractions is planned


class Bottleneck:
    """y = up(activation(down(x) + inner bias)) + outer bias, both maps planned once with the real sizes.

    The form contracts the factors of each map; the layer applies the biases and the activation.

    Args:
        network: Two terms, down and up, and a fold of "hidden".
        sizes: The size of every mode.
        batched: The factors that have a leading batch mode (they are generated, or indexed per example).

    Attributes:
        down: The factors of the map in -> hidden, in the order in which `make_down` takes them.
        up: The factors of the map hidden -> out, in the order in which `make_up` takes them.
        inner: The biases that are added before the activation.
        outer: The biases that are added to the output.
        width: The number of hidden units.
        hidden_modes: The number of modes that they are folded into.
        down_batched: True if a factor of down has a batch mode.
        up_batched: True if a factor of up has a batch mode.
        make_down: Factors of down -> (batch?, *hidden modes, in).
        make_up: Factors of up -> (batch?, *hidden modes, out).
        macs_per_token: Multiply-adds that take one position through both maps.

    Example:
        >>> network = Network.parse(
        ...     {"D": "in h", "U": "h out", "c": "h"}, {"hidden": "h"}, [["D"], ["U"]], "bottleneck", ["c"]
        ... )
        >>> form = Bottleneck(network, {"in": 768, "h": 16, "out": 768})
        >>> form.down, form.up, form.inner, form.rank
        (('D',), ('U',), ['c'], 16)
        >>> form.summary
        ('in h -> h in', 'activation', 'h out -> h out')
    """

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        self.down, self.up = network.terms
        hidden = network.folds["hidden"]
        self.inner = [bias for bias in network.biases if set(network.factors[bias]) <= set(hidden)]
        self.outer = [bias for bias in network.biases if bias not in self.inner]
        self.width = prod(sizes[mode] for mode in hidden)
        self.hidden_modes = len(hidden)
        self.down_batched = any(factor in batched for factor in self.down)
        self.up_batched = any(factor in batched for factor in self.up)
        sizes = {"batch": PLANNED_EXAMPLES, **sizes}

        def contraction(factors: Collection[str], outer_modes: Modes, outer_size: int) -> Contraction:
            """Plan factors -> (batch?, *hidden modes, outer size)."""
            batch_modes = [("batch",) if factor in batched else () for factor in factors]
            operand_modes = [(*batch, *network.factors[name]) for batch, name in zip(batch_modes, factors, strict=True)]
            out = (*max(batch_modes), *hidden, *outer_modes)  # the largest is ("batch",) if any factor has it
            return Contraction(operand_modes, out, sizes, (len(outer_modes), (outer_size,)))

        input_size = prod(sizes[mode] for mode in network.inputs)
        output_size = prod(sizes[mode] for mode in network.outputs)
        self.make_down = contraction(self.down, network.inputs, input_size)
        self.make_up = contraction(self.up, network.outputs, output_size)
        self.macs_per_token = self.width * (input_size + output_size)

    @property
    def rank(self) -> int:
        """The width of the bottleneck."""
        return self.width

    @property
    def summary(self) -> tuple[str, str, str]:
        """Down, what is between, and up in words."""
        return repr(self.make_down), "activation", repr(self.make_up)
