"""Initial values of factors, by name and by the factor's modes."""

from collections.abc import Sequence
from math import prod, sqrt
from zlib import crc32

import torch
from torch import Tensor

from metalora.config import nearest
from metalora.methods.method import INITS
from metalora.network.spec import INPUT_MODES


def initial(kind: str, modes: Sequence[str], shape: Sequence[int], seed: int, key: str) -> Tensor:
    """A float32 tensor; random ones depend on (seed, key) alone, never on the order of creation.

    kaiming: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the a = sqrt(5) of LoRA; fan_in is the product of the input modes, or
    of the bonds where a factor has none. xavier: N(0, 2 / (fan_in + fan_out)); normal: N(0, 0.2^2).
    """
    if kind not in INITS:
        raise ValueError(f"factor {key!r}: unknown initialisation {kind!r}{nearest(kind, INITS)}")
    tensor = torch.zeros(*shape)
    if kind == "ones":
        return tensor.fill_(1.0)
    if kind == "identity":
        tensor.diagonal(dim1=0, dim2=-1).fill_(1.0)
        return tensor
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{key}".encode()))
    inputs = [size for mode, size in zip(modes, shape, strict=True) if mode in INPUT_MODES]
    bonds = [n for m, n in zip(modes, shape, strict=True) if m not in (*INPUT_MODES, "out", "expert")]
    fan_in, fan_out = prod(inputs) if inputs else prod(bonds), prod(shape)
    if kind == "kaiming":
        bound = 1 / sqrt(fan_in)
        return tensor.uniform_(-bound, bound, generator=generator)
    if kind == "xavier":
        return tensor.normal_(0, sqrt(2 / (fan_in + fan_out / fan_in)), generator=generator)
    if kind == "normal":
        return tensor.normal_(0, 0.2, generator=generator)
    if kind == "orthogonal":
        return torch.nn.init.orthogonal_(
            tensor.flatten(1) if tensor.ndim > 1 else tensor[None], generator=generator
        ).reshape(tensor.shape)
    return tensor
