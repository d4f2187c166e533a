"""Initial values of factors, by name and by the factor's modes."""

from collections.abc import Sequence
from itertools import product
from math import prod, sqrt
from zlib import crc32

import torch
from torch import Tensor

from metalora.config import AdapterConfig, nearest
from metalora.methods.method import INITS, Method
from metalora.network.spec import COORDINATE_MODES, INPUT_MODES

CODES = {kind[:2]: kind for kind in INITS}


def inits(config: AdapterConfig, method: Method) -> dict[str, str]:
    """Factor -> initialisation, from the method and the config; ValueError for two factors that start at zero."""
    chosen = config.init
    if isinstance(chosen, str):
        words = chosen.split("-")
        if len(words) != len(method.factors) or any(word not in CODES for word in words):
            raise ValueError(
                f"method {method.name!r}: init {chosen!r} is not a code of one word for each of "
                f"{', '.join(method.factors)} (known: {', '.join(f'{c} {kind}' for c, kind in CODES.items())})"
            )
        chosen = {factor: CODES[word] for factor, word in zip(method.factors, words, strict=True)}
    for factor in chosen:
        if factor not in method.factors:
            raise ValueError(f"method {method.name!r}: init names factor {factor!r}{nearest(factor, method.factors)}")
    found = {**method.init, **chosen}
    zeros = [factor for factor, kind in found.items() if kind == "zeros" and factor not in method.gates]
    if len(zeros) > 1:
        raise ValueError(
            f"method {method.name!r}: factors {', '.join(zeros)} all start at zero, so no gradient would ever reach any"
        )
    return found


def initial(kind: str, modes: Sequence[str], shape: Sequence[int], seed: int, key: str) -> Tensor:
    """A float32 tensor; random ones depend on (seed, key) alone, never on the order of creation.

    kaiming: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the a = sqrt(5) of LoRA; fan_in is the product of the input modes, or
    of the bonds where a factor has none. xavier: N(0, 2 / (fan_in + fan_out)); normal: N(0, 0.2^2). identity: ones on
    the diagonal of a factor's first and last axis, slice by slice. orthogonal: of the matrix with the last axis as its
    columns, slice by slice over layer, proj, head and task.
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
    outer = (*INPUT_MODES, "out", "expert", *COORDINATE_MODES)
    bonds = [n for m, n in zip(modes, shape, strict=True) if m not in outer]
    fan_in, fan_out = prod(inputs) if inputs else prod(bonds), prod(shape)
    if kind == "kaiming":
        bound = 1 / sqrt(fan_in)
        return tensor.uniform_(-bound, bound, generator=generator)
    if kind == "xavier":
        return tensor.normal_(0, sqrt(2 / (fan_in + fan_out / fan_in)), generator=generator)
    if kind == "normal":
        return tensor.normal_(0, 0.2, generator=generator)
    if kind == "orthogonal":
        every = (slice(None),)
        for pick in product(*(range(n) if m in COORDINATE_MODES else every for m, n in zip(modes, shape, strict=True))):
            one = tensor[pick]
            matrix = torch.empty(one.shape[:-1].numel() if one.ndim > 1 else 1, one.shape[-1])
            one.copy_(torch.nn.init.orthogonal_(matrix, generator=generator).reshape(one.shape))
    return tensor
