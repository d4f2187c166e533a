"""Contractions over named modes: planned once by opt_einsum, replayed pair by pair."""

from collections.abc import Collection, Mapping, Sequence
from string import ascii_letters

import opt_einsum
import torch
from torch import Tensor

from metalora.tensornet.spec import Modes


class Contraction:
    """An einsum over named modes whose pairwise order is planned at construction with the real sizes.

    `flops` is the planned cost, a multiply-add being two. Planning inside forward breaks graphs; replaying does not.
    tail: (n, shape): the last n axes of the result are given another shape (folded modes put back together).
    eyes: pairs of modes joined by an identity matrix, beside the operands that are given.
    """

    def __init__(
        self,
        terms: Sequence[Modes],
        out: Modes,
        sizes: Mapping[str, int],
        tail: tuple[int, tuple[int, ...]] = (0, ()),
        eyes: Sequence[Modes] = (),
    ):
        self._given = terms, out, sizes, tail, eyes
        terms = [*terms, *eyes]
        self.terms, self.out = tuple(terms), tuple(out)
        self.eyes = tuple(sizes[eye[0]] for eye in eyes)
        n, shape = tail
        self.tail_modes = n
        self.tail = tail if tuple(sizes[mode] for mode in out[len(out) - n :]) != tuple(shape) else (0, ())
        modes = dict.fromkeys(mode for term in terms for mode in term)
        letter = dict(zip(modes, ascii_letters, strict=False))
        *inputs, output = ["".join(letter[mode] for mode in term) for term in (*terms, out)]
        self.equation = ",".join(inputs) + "->" + output
        self.steps: tuple[tuple[tuple[int, ...], str], ...] = ()
        self.flops = 0
        if not terms:
            return
        shapes = [tuple(sizes[mode] for mode in term) for term in terms]
        _, plan = opt_einsum.contract_path(self.equation, *shapes, shapes=True)
        steps = [(tuple(step[0]), step[2]) for step in plan.contraction_list]
        self.steps = tuple(step for step in steps if step[1] != f"{output}->{output}")  # an only operand as it is
        self.flops = int(plan.opt_cost)

    def __call__(self, operands: Sequence[Tensor]) -> Tensor:
        pending = [*operands, *(torch.eye(n, dtype=operands[0].dtype, device=operands[0].device) for n in self.eyes)]
        for picked, equation in self.steps:
            pending.append(torch.einsum(equation, *[pending.pop(k) for k in picked]))
        n, shape = self.tail
        return pending[0].reshape(*pending[0].shape[:-n], *shape) if n else pending[0]

    def batched(self, operands: Collection[int], size: int) -> "Contraction":
        """The same contraction `size` times at once, over a leading axis of these operands and of the result."""
        terms, out, sizes, tail, eyes = self._given
        terms = [("batch", *term) if k in operands else term for k, term in enumerate(terms)]
        return Contraction(terms, ("batch", *out), {**sizes, "batch": size}, tail, eyes)

    def __repr__(self) -> str:
        terms = ", ".join(" ".join(term) or "1" for term in self.terms)
        return f"{terms} -> {' '.join(self.out)}"
