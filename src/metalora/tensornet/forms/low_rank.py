"""The low-rank form of a network: its input side, its middle and its output side, one after another."""

from collections.abc import Callable, Collection, Mapping
from itertools import chain, combinations
from math import prod

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import INPUT_MODES, Modes

PLANNED_EXAMPLES = 8  # the sizes of batch and token for which the order of the contractions is planned
PLANNED_TOKENS = 64
PER_EXAMPLE_COST = 4  # a width that is computed for every example counts as this many shared ones


class LowRankForm:
    """Delta W = Left . Mid . Right, every contraction planned once with the real sizes.

    Left:  inputs -> k   the factors with an input mode: a thin layer of the base's own kind; factors between join them
                         if that makes k smaller
    Mid:   k -> k'       the factors with neither input nor output mode
    Right: k' -> out     the factors with an output mode
    A factor with modes of both sides (a Kronecker product's) is a part of Right: an identity matrix takes its input
    modes from Left to Right. Axes of the weight that are folded into several modes are single axes in the results.

    Args:
        network: The factors of one product.
        sizes: The size of every mode.
        batched: The factors that have a leading batch mode (they are generated, or indexed per example).

    Attributes:
        left: The factors of Left, in the order in which `kernel` takes them.
        mid: The factors of Mid.
        right: The factors of Right, in the order in which `expand` takes them.
        left_batched: True if a factor of Left has a batch mode; in the same way `mid_batched` and `right_batched`.
        fold_batched: True if a factor of Mid or Right has a batch mode.
        mid_shape: (k,) if Mid is one factor that holds its diagonal, (k, k') if it is one that holds all of it; None if
            Mid has to be contracted.
        left_shape: The sizes of the bonds that k consists of.
        left_rank: k, the product of `left_shape`.
        right_rank: k'.
        kernel: Factors of Left -> Left (batch?, *bonds, in, kh?, kw?).
        mix: Hidden activation (batch, tokens, *bonds) and the factors of Mid -> (batch, tokens, *bonds of k').
        expand: Factors of Right -> Right (batch?, *bonds of k', out).
        fold: Factors of Mid, then of Right -> Mid . Right (batch?, *bonds, out).
        dense_macs: Multiply-adds that form Delta W.
        macs_per_token: Multiply-adds that take one position through Left, Mid and Right.

    Example:
        >>> network = Network.parse({"A": "in r", "core": "r s", "B": "s out"})
        >>> form = LowRankForm(network, {"in": 768, "r": 8, "s": 8, "out": 512})
        >>> form.left, form.mid, form.right, form.rank
        (['A'], ['core'], ['B'], 8)
        >>> form.summary
        ('in r -> r in', 'batch token r, r s -> batch token s', 's out -> s out')
    """

    full_rank = False  # a low-rank form is narrower than the weight; a circuit is not

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        modes_of = {}  # with the batch axis that a generated factor has, and that its spec does not name
        for factor, modes in network.factors.items():
            batch_modes = ("batch",) if factor in batched else ()
            modes_of[factor] = (*batch_modes, *modes)
        identities = _separate_inputs_of_two_sided_factors(modes_of, network)
        sizes = {"batch": PLANNED_EXAMPLES, "token": PLANNED_TOKENS, **sizes}
        sizes |= {separated: sizes[mode] for mode, separated in identities}
        self._open_modes = {*network.inputs, *network.outputs, "batch"}
        self.left = self._left_side(network, modes_of, sizes, batched)
        assert self.left, "a network needs a factor whose modes of the weight are of the input side alone"
        self.right = self._right_side(network, modes_of, sizes, batched)
        self.mid = [factor for factor in modes_of if factor not in self.left and factor not in self.right]
        self.left_batched = any(factor in batched for factor in self.left)
        self.mid_batched = any(factor in batched for factor in self.mid)
        self.right_batched = any(factor in batched for factor in self.right)
        self.fold_batched = self.mid_batched or self.right_batched
        self._plan(network, modes_of, sizes, identities)

    def _plan(self, network: Network, modes_of: Mapping[str, Modes], sizes: Sizes, identities: list[Modes]) -> None:
        """Plan the four contractions and set the widths and the costs.

        Args:
            network: The network.
            modes_of: Factor -> its modes, with its batch mode and with the separated input modes.
            sizes: The size of every mode in `modes_of`, and of batch and token.
            identities: Pairs (input mode, separated mode) that an identity matrix joins.
        """
        left_bonds, right_bonds = self._bonds_of_sides(modes_of, identities)
        self.left_shape = [sizes[bond] for bond in left_bonds]
        self.left_rank = prod(self.left_shape)
        self.right_rank = prod(sizes[bond] for bond in right_bonds)
        self.mid_shape: tuple[int, ...] | None = None
        if len(self.mid) == 1:
            mid_bonds = tuple(mode for mode in modes_of[self.mid[0]] if mode != "batch")
            if mid_bonds == left_bonds == right_bonds:
                self.mid_shape = (self.left_rank,)
            elif mid_bonds == left_bonds + right_bonds:
                self.mid_shape = self.left_rank, self.right_rank
        inputs, outputs = network.inputs, network.outputs
        spatial_sizes = [sizes[mode] for mode in inputs if mode in INPUT_MODES[1:]]
        input_size = prod(sizes[mode] for mode in inputs)
        output_size = prod(sizes[mode] for mode in outputs)
        # (number of axes, their shape in the result): the digits of an axis become one again
        input_axes = len(inputs), (input_size // prod(spatial_sizes), *spatial_sizes)
        output_axes = len(outputs), (output_size,)
        left_modes = [modes_of[factor] for factor in self.left]
        mid_modes = [modes_of[factor] for factor in self.mid]
        right_modes = [modes_of[factor] for factor in self.right]
        kernel_out = (*_batch_modes(self.left_batched), *left_bonds, *inputs)  # bonds first, as the outputs of a weight
        self.kernel = Contraction(left_modes, kernel_out, sizes, input_axes, identities)
        hidden_modes = ("batch", "token", *left_bonds)
        self.mix = Contraction([hidden_modes, *mid_modes], ("batch", "token", *right_bonds), sizes)
        expand_out = (*_batch_modes(self.right_batched), *right_bonds, *outputs)
        self.expand = Contraction(right_modes, expand_out, sizes, output_axes)
        # Mid · Right as one matrix, what a layer multiplies its hidden activation by
        fold_out = (*_batch_modes(self.fold_batched), *left_bonds, *outputs)
        self.fold = Contraction(mid_modes + right_modes, fold_out, sizes, output_axes)
        self.dense_macs = self.left_rank * input_size * output_size
        self.macs_per_token = self.left_rank * (input_size + output_size)

    @property
    def summary(self) -> tuple[str, str, str]:
        """Left, Mid and Right in words."""
        return repr(self.kernel), repr(self.mix) if self.mid else "identity", repr(self.expand)

    @property
    def rank(self) -> int:
        """k, the width of the form: the rank of an exact LoRA export."""
        return self.left_rank

    def _left_side(
        self, network: Network, modes_of: Mapping[str, Modes], sizes: Sizes, batched: Collection[str]
    ) -> list[str]:
        """The factors with an input mode, joined by those between (none per example) that make k smaller."""
        left = [factor for factor, modes in modes_of.items() if set(modes) & set(network.inputs)]
        outputs = [factor for factor, modes in modes_of.items() if set(modes) & set(network.outputs)]
        between = [factor for factor in modes_of if factor not in (*left, *outputs, *batched)]
        return self._cheapest_side(left, between, modes_of, lambda side, width: width, sizes)

    def _right_side(
        self, network: Network, modes_of: Mapping[str, Modes], sizes: Sizes, batched: Collection[str]
    ) -> list[str]:
        """The factors with an output mode, joined by those between that make k' smaller.

        A factor between that would make a shared Right differ by example joins only if k' is much smaller then.
        """

        def cost(side: Collection[str], width: int) -> int:
            per_example = any(factor in batched for factor in side)
            return width * PER_EXAMPLE_COST if per_example else width

        with_output = [factor for factor, modes in modes_of.items() if set(modes) & set(network.outputs)]
        right = [factor for factor in with_output if factor not in self.left]
        between = [factor for factor in modes_of if factor not in (*self.left, *right)]
        return self._cheapest_side(right, between, modes_of, cost, sizes)

    def _cheapest_side(
        self,
        side: list[str],
        between: list[str],
        modes_of: Mapping[str, Modes],
        cost: Callable[[Collection[str], int], int],
        sizes: Sizes,
    ) -> list[str]:
        """Return the factors of a side and those between that make it cheapest; of equal choices, the fewest factors.

        Args:
            side: The factors that belong to the side in any case.
            between: The factors that may join it.
            modes_of: Factor -> its modes.
            cost: (factors of the side, product of the sizes of its bonds) -> the number to minimise.
            sizes: The size of every mode.
        """

        def cost_and_count(joining: tuple[str, ...]) -> tuple[int, int]:
            inside = [*side, *joining]
            outside = [factor for factor in modes_of if factor not in inside]
            width = prod(sizes[bond] for bond in self._bonds(modes_of, inside, outside))
            return cost(inside, width), len(joining)

        # all 2^n subsets: there are few factors between the two sides
        subsets = chain.from_iterable(combinations(between, count) for count in range(len(between) + 1))
        best = min(subsets, key=cost_and_count)
        return [factor for factor in modes_of if factor in side or factor in best]

    def _bonds_of_sides(self, modes_of: Mapping[str, Modes], identities: list[Modes]) -> tuple[Modes, Modes]:
        """Return the bonds that k consists of and those that k' consists of; both include the separated input modes."""
        identity_modes = tuple(mode for pair in identities for mode in pair)
        with_identities = {**modes_of, "": identity_modes}  # "" cannot be the name of a factor
        left_bonds = self._bonds(with_identities, [*self.left, ""], self.right + self.mid)
        right_bonds = self._bonds(modes_of, self.right, self.left + self.mid)
        separated_modes = tuple(separated for _, separated in identities)
        return left_bonds, right_bonds + separated_modes

    def _bonds(self, modes_of: Mapping[str, Modes], inside: Collection[str], outside: Collection[str]) -> Modes:
        """Return the summed modes that factors inside share with factors outside, in order of appearance inside."""
        outside_modes = {mode for factor in outside for mode in modes_of[factor]}
        inside_modes = dict.fromkeys(mode for factor in inside for mode in modes_of[factor])
        return tuple(mode for mode in inside_modes if mode in outside_modes and mode not in self._open_modes)


def _batch_modes(batched: bool) -> Modes:
    return ("batch",) if batched else ()


def _separate_inputs_of_two_sided_factors(modes_of: dict[str, Modes], network: Network) -> list[Modes]:
    """Rename, in place, the input modes of the factors that have output modes too: "in" becomes "in'".

    Such a factor is then a part of Right, and an identity matrix takes the input modes there.

    Args:
        modes_of: Factor -> its modes; changed.
        network: The network, for its input and output modes.

    Returns:
        Pairs (input mode, separated mode) that an identity matrix joins.
    """
    inputs, outputs = set(network.inputs), set(network.outputs)
    two_sided = [factor for factor, modes in modes_of.items() if inputs & set(modes) and outputs & set(modes)]
    shared_inputs = dict.fromkeys(mode for factor in two_sided for mode in modes_of[factor] if mode in inputs)
    separated = {mode: f"{mode}'" for mode in shared_inputs}
    for factor in two_sided:
        modes_of[factor] = tuple(separated.get(mode, mode) for mode in modes_of[factor])
    return list(separated.items())
