"""Initial values of factors, by name and by the factor's modes."""

from collections.abc import Mapping, Sequence
from itertools import product
from math import prod, sqrt
from zlib import crc32

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.config import AdapterConfig
from metalora.methods.method import INITS, Method
from metalora.tensornet.network import Network
from metalora.tensornet.spec import COORDINATE_MODES, KERNEL_MODES

CODES = {kind[:2]: kind for kind in INITS}
DEFAULTS = {"ones": 1.0, "kaiming": sqrt(5), "by_rank": sqrt(5), "gate": sqrt(5), "normal": 0.2}


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
    for factor in (*method.frozen, *config.frozen):
        if found[factor] == "zeros" and factor not in method.biases:
            raise ValueError(
                f"method {method.name!r}: frozen factor {factor} starts at zero, so Delta W would always be zero"
            )
    for term in method.terms or (method.factors,):
        added = {*method.gates, *method.biases}
        zeros = [factor for factor in term if found[factor] == "zeros" and factor not in added]
        if len(zeros) > 1:
            names = ", ".join(zeros)
            raise ValueError(
                f"method {method.name!r}: factors {names} all start at zero, so no gradient would ever reach any"
            )
    return found


def initial(
    kind: str,
    modes: Sequence[str],
    shape: Sequence[int],
    seed: int,
    key: str,
    network: Network,
    sizes: Mapping[str, int],
) -> Tensor:
    """A float32 tensor; random ones depend on (seed, key) alone, never on the order of creation.

    The kind may carry a number: kaiming:a is U(-b, b) with b = sqrt(6 / ((1 + a^2) fan_in)), a = sqrt(5) as in LoRA by
    default; fan_in is the product of the input modes and, where these are the kernel's or none, of the first bond.
    by_rank:a is the same with all bonds, gate:a with all modes but the last two, those that a gate gives. normal:s is
    N(0, s^2), s = 0.2; xavier: N(0, 2 / (fan_in + fan_out)), of bonds alone with torch's fans; unit: N(0, s^2) with
    s = (prod r)^(-1 / 2n) over all bonds and the n factors, whose product then has variance one. ones:v is filled with
    v. identity: ones on the diagonal of the first and the last axis, slice by slice. tiled: the same of all axes but
    the last as one, over and over. orthogonal: of the matrix with the last axis as its columns; of a factor with
    several bonds slice by slice over layer, proj, head and task.

    sizes: of all modes at a target that reads the factor
    """
    kind, number = _parsed(kind, key)
    tensor = torch.zeros(*shape)
    if kind == "ones":
        return tensor.fill_(number)
    if kind == "identity":
        tensor.diagonal(dim1=0, dim2=-1).fill_(1.0)
    elif kind == "tiled":
        tensor.copy_(torch.eye(shape[-1])[torch.arange(prod(shape[:-1])) % shape[-1]].reshape(*shape))
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{key}".encode()))
    if kind in ("kaiming", "by_rank", "gate"):
        bound = sqrt(6 / round(1 + number**2, 9)) / sqrt(_fan_in(kind, modes, shape, network))
        tensor.uniform_(-bound, bound, generator=generator)
    elif kind == "xavier":
        tensor.normal_(0, sqrt(2 / sum(_fans(modes, shape, network))), generator=generator)
    elif kind in ("normal", "unit"):
        tensor.normal_(0, number if kind == "normal" else _unit(network, sizes), generator=generator)
    elif kind == "orthogonal":
        _fill_orthogonal(tensor, modes, sum(m in network.bonds for m in modes) > 1, generator)
    return tensor


def _unit(network: Network, sizes: Mapping[str, int]) -> float:
    """The deviation of every factor with which their product has one of one."""
    [one, *_] = network.summands()
    return prod(sizes[bond] for bond in one.bonds) ** (-0.5 / len(one.factors))


def _fan_in(kind: str, modes: Sequence[str], shape: Sequence[int], network: Network) -> int:
    """The numbers that each output of a factor sums over."""
    if kind == "gate":
        return prod(shape[:-2])
    bonds = [n for m, n in zip(modes, shape, strict=True) if m in network.bonds]
    if kind == "by_rank":
        return prod(bonds)
    whole = any(m in network.inputs and m not in KERNEL_MODES for m in modes)
    inputs = prod(n for m, n in zip(modes, shape, strict=True) if m in network.inputs)
    return inputs if whole or not bonds else inputs * bonds[0]


def _fans(modes: Sequence[str], shape: Sequence[int], network: Network) -> tuple[float, float]:
    """Of xavier: torch's fan_in and fan_out of (out, in, *rest) for bonds alone."""
    if len(shape) > 2 and {*modes} <= {*network.bonds}:
        return prod(shape[1:]), prod(shape) / shape[1]
    fan_in = _fan_in("xavier", modes, shape, network)
    return fan_in, prod(shape) / fan_in


def _parsed(kind: str, key: str) -> tuple[str, float]:
    """ "normal:0.02" -> the kind and its number; ValueError for a kind that is not known, or a number it has not."""
    name, _, number = kind.partition(":")
    if name not in INITS:
        raise ValueError(f"factor {key!r}: unknown initialisation {kind!r}{nearest(name, INITS)}")
    try:
        if number and name not in DEFAULTS:
            raise ValueError
        return name, float(number) if number else DEFAULTS.get(name, 0.0)
    except ValueError:
        with_number = ", ".join(f"{one}:{value:.3g}" for one, value in DEFAULTS.items())
        raise ValueError(f"factor {key!r}: initialisation {kind!r}, expected a number as in {with_number}") from None


def _fill_orthogonal(tensor: Tensor, modes: Sequence[str], slices: bool, generator: torch.Generator) -> None:
    sliced = COORDINATE_MODES if slices else ()
    every = (slice(None),)
    for pick in product(*(range(n) if m in sliced else every for m, n in zip(modes, tensor.shape, strict=True))):
        one = tensor[pick]
        matrix = torch.empty(one.shape[:-1].numel() if one.ndim > 1 else 1, one.shape[-1])
        one.copy_(torch.nn.init.orthogonal_(matrix, generator=generator).reshape(one.shape))
