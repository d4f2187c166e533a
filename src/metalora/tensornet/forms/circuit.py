"""A circuit: gates on the digits of a weight, one after another, less what they were at a start that is not zero."""

from collections.abc import Collection, Sequence
from math import prod

from torch import Tensor

from metalora.tensornet.contraction import Contraction
from metalora.tensornet.network import Network, Sizes
from metalora.tensornet.spec import INPUT_MODES

TOKENS, EXAMPLES = 64, 8  # what contractions are planned for


class Circuit:
    """Delta W = N(T) - N(T0) or N(T), planned once with the real sizes; a `LowRankForm` whose Left is all of it.

    A gate has modes of both sides, so that no bond is narrower than the weight: k = out, and Mid and Right are the
    identity. An activation is taken through the gates, x N(T) - x N(T0), or through the whole kernel (convolutions).
    The second term of the network, if it has two, is T0.
    """

    full_rank = True
    mid: Sequence[str] = ()
    right: Sequence[str] = ()

    def __init__(self, network: Network, sizes: Sizes, batched: Collection[str] = ()):
        self.now, *starts = (tuple(one.factors) for one in network.split_terms())
        self.start = starts[0] if starts else ()
        self.left = [*self.now, *self.start]
        own = [f in batched for f in self.now]
        self.left_batched, self._batched = any(own), tuple(own)
        inputs, outputs = network.inputs, network.outputs
        self.left_shape = [sizes[m] for m in outputs]
        self.left_rank = prod(self.left_shape)
        spatial = [sizes[m] for m in inputs if m in INPUT_MODES[1:]]
        kernel_shape = (prod(sizes[m] for m in inputs) // prod(spatial), *spatial)
        sizes = {"batch": EXAMPLES, "token": TOKENS, **sizes}

        def contraction(names: Sequence[str], tokens: bool) -> Contraction:
            every = zip(names, self._batched, strict=True)
            terms = [(("batch",) if each else ()) + network.factors[f] for f, each in every]
            if tokens:
                terms, out = [("batch", "token", *inputs), *terms], ("batch", "token", *outputs)
                return Contraction(terms, out, sizes, (len(outputs), (self.left_rank,)))
            lead = ("batch",) if self.left_batched else ()
            return Contraction(terms, (*lead, *outputs, *inputs), sizes, (len(inputs), kernel_shape))

        self._kernels = [contraction(names, tokens=False) for names in (self.now, *starts)]
        self._gates = [contraction(names, tokens=True) for names in (self.now, *starts)]
        self._inputs = [sizes[m] for m in inputs]
        self.dense_macs = sum(one.flops for one in self._kernels) // 2  # in multiply-adds, as of a `LowRankForm`
        self.macs_per_token = sum(one.flops for one in self._gates) // (2 * TOKENS * EXAMPLES)

    @property
    def rank(self) -> int:
        """The width of the weight: the rank of an exact LoRA export."""
        return self.left_rank

    def kernel(self, operands: Sequence[Tensor]) -> Tensor:
        """Delta W, (b?, *digits of out, in, *kernel)."""
        now, *start = (one(values) for one, values in zip(self._kernels, self._split(operands), strict=True))
        return now - start[0] if start else now

    def through(self, tokens: Tensor, operands: Sequence[Tensor]) -> Tensor:
        """x Delta W gate by gate, (b, t, in) -> (b, t, out), in the gates' own precision: it is a small difference."""
        x = tokens.to(operands[0].dtype).reshape(*tokens.shape[:2], *self._inputs)
        sides = zip(self._gates, self._split(operands), strict=True)
        now, *start = (one([x, *values]) for one, values in sides)
        return now - start[0] if start else now

    def _split(self, operands: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """What is now and the start, contracted alike to the last bit, so that a circuit starts as exactly nothing."""
        now, start = operands[: len(self.now)], operands[len(self.now) :]
        if not start:
            return [now]
        every = zip(now, start, self._batched, strict=True)
        return [now, [at.expand_as(one) if each else at for one, at, each in every]]

    @property
    def summary(self) -> tuple[str, str, str]:
        """Left, Mid and Right in words."""
        return repr(self._gates[0]) + ", less its start" * bool(self.start), "identity", "identity"
