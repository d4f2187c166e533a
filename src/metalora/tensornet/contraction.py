"""Contractions over named modes: planned once by opt_einsum, replayed operand by operand."""

from collections.abc import Collection, Mapping, Sequence
from string import ascii_letters

import opt_einsum
import torch
from torch import Tensor

from metalora.tensornet.spec import Modes


class Contraction:
    """An einsum over named modes; the order of its steps is planned at construction with the real sizes.

    Planning inside a forward pass breaks graphs of torch.compile; replaying a plan does not.

    Args:
        operand_modes: The modes of every operand, one for each axis.
        out: The modes of the result; all others are summed.
        sizes: The size of every mode.
        tail: (n, shape): the last n axes of the result are reshaped to `shape` (the modes that an axis of the weight
            is folded into are put together again).
        identities: Pairs of modes that an identity matrix joins, in addition to the operands.

    Attributes:
        equation: The einsum in letters.
        flops: The planned cost in floating-point operations, a multiply-add being two.

    Example:
        >>> product = Contraction([("in", "r"), ("r", "out")], ("in", "out"), {"in": 4, "r": 2, "out": 3})
        >>> product, product.equation, product([torch.ones(4, 2), torch.ones(2, 3)]).shape
        (in r, r out -> in out, 'ab,bc->ac', torch.Size([4, 3]))
    """

    def __init__(
        self,
        operand_modes: Sequence[Modes],
        out: Modes,
        sizes: Mapping[str, int],
        tail: tuple[int, tuple[int, ...]] = (0, ()),
        identities: Sequence[Modes] = (),
    ):
        self._arguments = operand_modes, out, sizes, tail, identities
        self.operand_modes = (*operand_modes, *identities)
        self.out = tuple(out)
        self.identity_sizes = tuple(sizes[first] for first, _ in identities)
        self.tail_modes, tail_shape = tail
        sizes_of_tail = tuple(sizes[mode] for mode in out[len(out) - self.tail_modes :])
        self.tail = tail if sizes_of_tail != tuple(tail_shape) else (0, ())  # nothing to reshape
        modes = dict.fromkeys(mode for operand in self.operand_modes for mode in operand)
        letters = dict(zip(modes, ascii_letters, strict=False))  # torch.einsum has these 52; a mode more is a KeyError
        inputs = ["".join(letters[mode] for mode in operand) for operand in self.operand_modes]
        output = "".join(letters[mode] for mode in out)
        self.equation = ",".join(inputs) + "->" + output
        self.steps: tuple[tuple[tuple[int, ...], str], ...] = ()
        self.flops = 0
        self._order: tuple[int, ...] | None = None  # of the axes of a single operand that is only permuted
        if len(self.operand_modes) == 1 and not identities and sorted(operand_modes[0]) == sorted(out):
            self._order = tuple(list(operand_modes[0]).index(mode) for mode in out)
        self._is_ordered = self._order == tuple(range(len(out)))  # a permutation costs a node of the graph
        if self.operand_modes:
            self._plan(sizes, output)

    def _plan(self, sizes: Mapping[str, int], output: str) -> None:
        """Set the steps, (positions of the operands that a step consumes, its equation), and their cost."""
        shapes = [tuple(sizes[mode] for mode in operand) for operand in self.operand_modes]
        _, plan = opt_einsum.contract_path(self.equation, *shapes, shapes=True)
        steps = [(tuple(step[0]), step[2]) for step in plan.contraction_list]
        copy_of_output = f"{output}->{output}"  # a single operand is returned as it is
        self.steps = tuple(step for step in steps if step[1] != copy_of_output)
        self.flops = int(plan.opt_cost)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        """Contract tensors whose axes are `operand_modes`; the result has the axes `out`, its tail reshaped."""
        if self._order is not None:  # what layers do in every forward, without einsum's Python
            result = operands[0] if self._is_ordered else operands[0].permute(self._order)
            num_axes, shape = self.tail
            return result.reshape(*result.shape[:-num_axes], *shape) if num_axes else result
        pending = list(operands)
        for size in self.identity_sizes:
            pending.append(torch.eye(size, dtype=operands[0].dtype, device=operands[0].device))
        # opt_einsum lists the positions in descending order, so that a pop does not move those that follow
        for positions, equation in self.steps:
            pending.append(torch.einsum(equation, *[pending.pop(position) for position in positions]))
        (result,) = pending
        num_axes, shape = self.tail
        return result.reshape(*result.shape[:-num_axes], *shape) if num_axes else result

    def batched(self, operands: Collection[int], size: int) -> "Contraction":
        """Plan the same contraction `size` times at once.

        Args:
            operands: The positions of the operands that get a leading axis "targets", as the result does.
            size: The length of that axis.
        """
        operand_modes, out, sizes, tail, identities = self._arguments
        batched_modes = [
            ("targets", *modes) if position in operands else modes for position, modes in enumerate(operand_modes)
        ]
        return Contraction(batched_modes, ("targets", *out), {**sizes, "targets": size}, tail, identities)

    @property
    def signature(self) -> tuple[str, tuple[int, ...]]:
        """The equation and the size of every mode: equal for contractions that do the same."""
        modes = dict.fromkeys(mode for operand in self.operand_modes for mode in operand)
        return self.equation, tuple(self._arguments[2][mode] for mode in modes)

    def __repr__(self) -> str:
        operands = ", ".join(" ".join(modes) or "1" for modes in self.operand_modes)
        return f"{operands} -> {' '.join(self.out)}"
