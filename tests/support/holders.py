"""The table of modules that read matrices themselves, with plain PyTorch models, inputs and the matrices to adapt."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from metalora.adapters.held_matrix import held_matrix

IN, HIDDEN, EXPERTS = 6, 4, 3


class Experts(nn.Module):
    """Experts as transformers stores them: (experts, out, in), or (experts, in, out) if the class says so."""

    def __init__(self, is_transposed=False):
        super().__init__()
        self.is_transposed = is_transposed
        shapes = {"gate_up_proj": (2 * HIDDEN, IN), "down_proj": (IN, HIDDEN)}
        for name, (out, into) in shapes.items():
            shape = (into, out) if is_transposed else (out, into)
            self.register_parameter(name, nn.Parameter(0.5 * torch.randn(EXPERTS, *shape)))

    def forward(self, x, chosen):
        y = torch.zeros_like(x)
        for expert in range(EXPERTS):
            up, down = self.gate_up_proj[expert], self.down_proj[expert]
            up, down = (up.mT, down.mT) if self.is_transposed else (up, down)
            gate, value = F.linear(x, up).chunk(2, -1)
            y = y + chosen[..., expert, None] * F.linear(F.silu(gate) * value, down)
        return y


class Router(nn.Module):
    """A router whose forward returns a tuple."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, IN))

    def forward(self, x):
        logits = F.linear(x, self.weight)
        return logits, logits.softmax(-1)


class Mixture(nn.Module):
    """A block of experts and their router."""

    def __init__(self, is_transposed=False):
        super().__init__()
        self.gate, self.experts = Router(), Experts(is_transposed)

    def forward(self, x):
        return x + self.experts(x, self.gate(x)[1])


class Attention(nn.MultiheadAttention):
    """Self-attention of one input."""

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


class CrossAttention(nn.MultiheadAttention):
    """Attention whose keys are narrower than its queries, so that each projection has a parameter."""

    def forward(self, x):
        return super().forward(x, x[..., : self.kdim], x, need_weights=False)[0]


class ListedMatrices(nn.Module):
    """A list of parameters, which has no forward of its own."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList(torch.randn(IN, IN) for _ in range(2))

    def forward(self, x):
        return x @ self.matrices[0] @ self.matrices[1]


@dataclass(frozen=True)
class Holder:
    """A model of two layers whose matrices no layer multiplies.

    Attributes:
        make: What makes one layer, which takes and returns (batch, tokens, IN).
        targets: Patterns of the matrices.
        count: How many matrices one layer has.
    """

    make: Callable[[], nn.Module]
    targets: tuple[str, ...]
    count: int

    def base(self) -> nn.Sequential:
        return nn.Sequential(self.make(), self.make()).double().eval()

    def inputs(self) -> torch.Tensor:
        return torch.randn(2, 5, IN, dtype=torch.float64)


MIXTURE = ("experts.gate_up_proj", "experts.down_proj", "gate.weight")
HOLDERS = {
    "experts": Holder(Mixture, MIXTURE, 2 * EXPERTS + 1),
    "experts-transposed": Holder(lambda: Mixture(is_transposed=True), MIXTURE, 2 * EXPERTS + 1),
    "attention": Holder(lambda: Attention(IN, 2, batch_first=True), ("in_proj_weight", "out_proj"), 2),
    "attention-separate": Holder(
        lambda: CrossAttention(IN, 3, kdim=4, bias=False, batch_first=True), ("?_proj_weight", "out_proj"), 4
    ),
    "encoder": Holder(
        lambda: nn.TransformerEncoderLayer(IN, 2, 8, batch_first=True),
        ("in_proj_weight", "out_proj", "linear1", "linear2"),
        4,
    ),
    "listed": Holder(ListedMatrices, ("matrices",), 2),
}


def with_weights(model: nn.Module, updates: dict[str, torch.Tensor]) -> nn.Module:
    """Add updates to the matrices of a plain model, without any of the library's substitution."""
    with torch.no_grad():
        for path, update in updates.items():
            matrix = held_matrix(model, path)
            parameter = matrix.holder.get_parameter(matrix.name)
            (parameter if matrix.index is None else parameter[matrix.index]).add_(update)
    return model
