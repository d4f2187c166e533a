"""A circuit: gates on the digits of a weight, one after another, minus what they were at a start that is not zero."""

from collections.abc import Collection, Sequence
from math import prod

from torch import Tensor

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import INPUT_MODES

TOKENS = 64  # the sizes of token and batch for which the order of the contractions is planned
EXAMPLES = 8


class Circuit:
    """Delta W = N(T) - N(T0), or N(T) if there is no start T0; planned once with the real sizes.

    It has the attributes of a `LowRankForm` whose Left is the whole network. A gate has modes of both sides, so that
    no bond is narrower than the weight: k = out, and Mid and Right are the identity. An activation is taken through
    the gates, x N(T) - x N(T0), or through the dense kernel (convolutions).

    Args:
        network: One term T, or two terms, T and the start T0.
        sizes: The size of every mode.
        batched: The factors that have a leading batch mode (they are generated, or indexed per example).

    Attributes:
        current: The factors of T.
        start: The factors of T0; empty if there is none.
        left: `current` and then `start`: the order of the operands.
        left_batched: True if a factor of T has a batch mode.
        left_shape: The sizes of the digits of out.
        left_rank: out, the product of `left_shape`.
        dense_macs: Multiply-adds that form Delta W.
        macs_per_token: Multiply-adds that take one position through the gates.

    Example:
        >>> import torch
        >>> specs = {"T": "in1 in2 out1 out2", "T0": "in1 in2 out1 out2"}
        >>> folds = {"in": "in1 in2", "out": "out1 out2"}
        >>> network = Network.parse(specs, folds, [["T"], ["T0"]], "circuit")
        >>> form = Circuit(network, {"in1": 4, "in2": 3, "out1": 4, "out2": 3})
        >>> form.left, form.start, form.rank
        (['T', 'T0'], ('T0',), 12)
        >>> gate = torch.ones(4, 3, 4, 3)
        >>> form.kernel([gate, gate]).shape, form.through(torch.ones(2, 5, 12), [gate, gate]).shape
        (torch.Size([4, 3, 12]), torch.Size([2, 5, 12]))
    """

    full_rank = True
    mid: Sequence[str] = ()
    right: Sequence[str] = ()

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        terms = [tuple(term.factors) for term in network.split_terms()]
        self.current, *starts = terms  # the term that is learned comes first
        self.start = starts[0] if starts else ()
        self.left = [*self.current, *self.start]
        self._is_batched = tuple(factor in batched for factor in self.current)
        self.left_batched = any(self._is_batched)
        inputs, outputs = network.inputs, network.outputs
        self.left_shape = [sizes[mode] for mode in outputs]
        self.left_rank = prod(self.left_shape)
        self._input_sizes = [sizes[mode] for mode in inputs]
        spatial_sizes = [sizes[mode] for mode in inputs if mode in INPUT_MODES[1:]]
        # (in, kh?, kw?): the digits of in become one axis again, those of out stay
        kernel_shape = (prod(self._input_sizes) // prod(spatial_sizes), *spatial_sizes)
        sizes = {"batch": EXAMPLES, "token": TOKENS, **sizes}

        def operand_modes(factors: Sequence[str]) -> list[tuple[str, ...]]:
            """The modes of a term's factors; those of the start are expanded to the batch axes of the current ones."""
            modes = []
            for factor, is_batched in zip(factors, self._is_batched, strict=True):
                batch_modes = ("batch",) if is_batched else ()
                modes.append((*batch_modes, *network.factors[factor]))
            return modes

        def plan_kernel(factors: Sequence[str]) -> Contraction:
            """Plan factors -> (batch?, *digits of out, in, *kernel)."""
            batch_modes = ("batch",) if self.left_batched else ()
            out = (*batch_modes, *outputs, *inputs)
            return Contraction(operand_modes(factors), out, sizes, (len(inputs), kernel_shape))

        def plan_gates(factors: Sequence[str]) -> Contraction:
            """Plan an activation (batch, tokens, *digits of in) and factors -> (batch, tokens, out)."""
            activation = ("batch", "token", *inputs)
            out = ("batch", "token", *outputs)
            return Contraction([activation, *operand_modes(factors)], out, sizes, (len(outputs), (self.left_rank,)))

        self._kernels = [plan_kernel(factors) for factors in terms]
        self._gates = [plan_gates(factors) for factors in terms]
        # A multiply-add is two floating-point operations.
        self.dense_macs = sum(kernel.flops for kernel in self._kernels) // 2
        self.macs_per_token = sum(gates.flops for gates in self._gates) // (2 * TOKENS * EXAMPLES)

    @property
    def rank(self) -> int:
        """The width of the weight: the rank of an exact LoRA export."""
        return self.left_rank

    def kernel(self, operands: Sequence[Tensor]) -> Tensor:
        """Return Delta W (batch?, *digits of out, in, *kernel) from the factors in the order of `left`."""
        terms = zip(self._kernels, self._split_operands(operands), strict=True)
        current, *start = (kernel(factors) for kernel, factors in terms)
        return current - start[0] if start else current

    def through(self, tokens: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """Compute x Delta W gate by gate.

        It is computed in the precision of the gates, since it is a small difference of large numbers.

        Args:
            tokens: The activation x (batch, tokens, in).
            operands: The factors in the order of `left`.

        Returns:
            x Delta W (batch, tokens, out).
        """
        x = tokens.to(operands[0].dtype).reshape(*tokens.shape[:2], *self._input_sizes)  # (batch, tokens, *digits)
        terms = zip(self._gates, self._split_operands(operands), strict=True)
        current, *start = (gates([x, *factors]) for gates, factors in terms)
        return current - start[0] if start else current

    def _split_operands(self, operands: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """Split the operands into those of T and those of T0.

        The factors of T0, (*modes), get the batch axes of T's, (batch, *modes): both terms are then contracted in the
        same way to the last bit, so that a circuit starts as exactly zero.
        """
        current, start = operands[: len(self.current)], operands[len(self.current) :]
        if not start:
            return [current]
        pairs = zip(current, start, self._is_batched, strict=True)
        aligned = [initial.expand_as(factor) if is_batched else initial for factor, initial, is_batched in pairs]
        return [current, aligned]

    @property
    def summary(self) -> tuple[str, str, str]:
        """The gates in words; Mid and Right are the identity."""
        return repr(self._gates[0]) + ", less its start" * bool(self.start), "identity", "identity"
