"""Initial values of factors, by the name of the initialisation and by the modes of the factor.

| kind          | value                                                                                       |
|---------------|---------------------------------------------------------------------------------------------|
| zeros         | 0                                                                                           |
| ones:v        | v, by default 1                                                                             |
| identity      | ones on the diagonal of the first and the last axis, slice by slice                         |
| tiled         | the identity of the last axis, repeated along all others together                           |
| kaiming:a     | U(-b, b), b = sqrt(6 / ((1 + a^2) fan_in)); a = sqrt(5) as in LoRA by default                 |
| by_rank:a     | kaiming with the product of all bonds as fan_in                                             |
| gate:a        | kaiming with all modes as fan_in but the last two, the outputs of the gate                  |
| normal:s      | N(0, s^2), s = 0.2 by default                                                               |
| xavier        | N(0, 2 / (fan_in + fan_out)); of a factor with bonds alone, torch's fans of (out, in, ...)  |
| unit          | N(0, s^2) with the s that gives the contracted product of all factors unit variance         |
| orthogonal    | an orthogonal matrix with the last axis as its columns; of a factor with several bonds one  |
|               | for every slice over layer, proj, head and task                                             |

fan_in is the product of the input modes; if these are those of the kernel only, or there are none, it is multiplied
by the first bond.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod, sqrt
from zlib import crc32

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora.adapters.layout import Layout, scales_by_path
from metalora.adapters.targets import Target
from metalora.adapters.weight_layout import outputs_first
from metalora.methods.method import FROM_DATA, FROM_WEIGHT, INITS
from metalora.methods.resolve import ResolvedMethod
from metalora.tensornet.network import Network
from metalora.tensornet.spec import COORDINATE_MODES, KERNEL_MODES

# The number of a kind that has one, unless the declaration gives another, as in "normal:0.02".
DEFAULT_NUMBERS = {"ones": 1.0, "kaiming": sqrt(5), "by_rank": sqrt(5), "gate": sqrt(5), "normal": 0.2}


def initial_factors(resolved: ResolvedMethod, layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The initial values of all stored factors.

    Args:
        resolved: The method.
        layout: Its layout.
        weights: Path of a target -> the weight of its base, as the base stores it.

    Returns:
        Key -> value, `(*shape)`; float32, or float64 if it is computed from a weight.

    Raises:
        ValueError: An unknown initialisation, or a quantised weight from which factors are to be computed.
    """
    network, seed = resolved.method.network, resolved.config.seed
    values = {}
    if FROM_WEIGHT in resolved.inits.values():
        values = _values_from_weights(resolved, layout, weights)
    sizes = {view.key: target.sizes for target in layout.targets.values() for view in target.views.values()}
    for key, param in layout.params.items():
        if key not in values:
            kind = resolved.inits[param.factor]
            values[key] = initial_value(kind, param.modes, param.shape, seed, key, network, sizes[key])
    return {key: values[key] for key in layout.params}


def _values_from_weights(resolved: ResolvedMethod, layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key -> value of the factors that a mechanism computes from the weights."""
    scales = scales_by_path(layout.targets, resolved)
    values: dict[str, Tensor] = {}
    for path, target in layout.targets.items():
        weight = weights[path]
        if not weight.is_floating_point():
            raise ValueError(
                f"target {path!r}: method {resolved.name!r} computes its start from the weight, and this one is "
                f"{weight.dtype}: it must not be quantised"
            )
        for handler in target.handlers:
            for factor, value in handler.values_from_weight(input_rows(weight, target.target), scales[path]).items():
                if resolved.inits[factor] == FROM_WEIGHT:  # the configuration may say otherwise
                    key = target.views[factor].key
                    values[key] = value.reshape(layout.params[key].shape)
    return values


def input_rows(weight: Tensor, target: Target) -> Tensor:
    """A base's weight as `(inputs, out)`, the inputs being the axes of the kernel followed by `in`.

    It is in float64 on the CPU, so that the same weight gives the same factors on every device.

    Args:
        weight: The weight, as the base stores it.
        target: The target.
    """
    weight = weight.detach()
    if not weight.is_meta:  # a decomposition of meta tensors has the right shapes
        weight = weight.to("cpu", torch.float64)
    weight = outputs_first(weight[None], target)[0]
    kernel_axes = range(2, weight.ndim)  # (out, in, *kernel) -> (*kernel, in, out) -> (inputs, out)
    return weight.permute(*kernel_axes, 1, 0).flatten(0, -2)


def initial_value(
    kind: str,
    modes: Sequence[str],
    shape: Sequence[int],
    seed: int,
    key: str,
    network: Network,
    sizes: Mapping[str, int],
) -> Tensor:
    """The initial value of a factor, `(*shape)` in float32.

    The docstring of this module lists the kinds. Random values depend on (seed, key) alone, never on the order in which
    factors are created.

    Args:
        kind: The initialisation, such as "kaiming" or "normal:0.02".
        modes: Modes of the factor.
        shape: Their sizes.
        seed: Seed of the adapter.
        key: Key of the stored factor.
        network: The network of the method.
        sizes: Sizes of all modes at a target that reads the factor.

    Raises:
        ValueError: An unknown kind, or a number that the kind does not have.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> network = get_method("lora").network
        >>> initial_value("identity", ("in", "r"), (2, 2), 0, "A", network, {})
        tensor([[1., 0.],
                [0., 1.]])
    """
    kind, number = _parse_kind(kind, key)
    value = torch.zeros(*shape)
    # crc32 and not hash(): Python draws a new seed of hash() in every process.
    generator = torch.Generator().manual_seed(crc32(f"{seed}/{key}".encode()))
    if kind == "ones":
        value.fill_(number)
    elif kind == "identity":
        value.diagonal(dim1=0, dim2=-1).fill_(1.0)
    elif kind == "tiled":
        _fill_tiled(value)
    elif kind in ("kaiming", "by_rank", "gate"):
        gain = sqrt(6 / round(1 + number**2, 9))  # sqrt(5) squared is not exactly 5
        bound = gain / sqrt(_fan_in(kind, modes, shape, network))
        value.uniform_(-bound, bound, generator=generator)
    elif kind == "orthogonal":
        several_bonds = sum(mode in network.bonds for mode in modes) > 1
        _fill_orthogonal(value, modes, several_bonds, generator)
    elif kind not in ("zeros", FROM_DATA):  # zeros until the data come
        value.normal_(0, _deviation(kind, number, modes, shape, network, sizes), generator=generator)
    return value


def _parse_kind(kind: str, key: str) -> tuple[str, float]:
    """ "normal:0.02" -> the kind and its number."""
    name, _, number = kind.partition(":")
    if name not in (*INITS, FROM_DATA):
        raise ValueError(f"factor {key!r}: unknown initialisation {kind!r}{nearest(name, INITS)}")
    try:
        if number and name not in DEFAULT_NUMBERS:
            raise ValueError
        return name, float(number) if number else DEFAULT_NUMBERS.get(name, 0.0)
    except ValueError:
        examples = ", ".join(f"{name}:{default:.3g}" for name, default in DEFAULT_NUMBERS.items())
        raise ValueError(f"factor {key!r}: initialisation {kind!r}, expected a number as in {examples}") from None


def _deviation(
    kind: str, number: float, modes: Sequence[str], shape: Sequence[int], network: Network, sizes: Mapping[str, int]
) -> float:
    """Standard deviation of the normal kinds."""
    if kind == "normal":
        return number
    if kind == "unit":
        return _unit_deviation(network, sizes)
    return sqrt(2 / sum(_fans(modes, shape, network)))


def _unit_deviation(network: Network, sizes: Mapping[str, int]) -> float:
    """Standard deviation per factor that gives the contracted product unit variance: (prod r)^(-1 / 2n).

    The product is over all bonds, n is the number of factors.
    """
    first_term, *_ = network.split_terms()
    return float(prod(sizes[bond] for bond in first_term.bonds) ** (-0.5 / len(first_term.factors)))


def _fan_in(kind: str, modes: Sequence[str], shape: Sequence[int], network: Network) -> int:
    """How many numbers each output of a factor is a sum of."""
    if kind == "gate":
        return prod(shape[:-2])
    bonds = [size for mode, size in zip(modes, shape, strict=True) if mode in network.bonds]
    if kind == "by_rank":
        return prod(bonds)
    has_channels = any(mode in network.inputs and mode not in KERNEL_MODES for mode in modes)
    inputs = prod(size for mode, size in zip(modes, shape, strict=True) if mode in network.inputs)
    return inputs if has_channels or not bonds else inputs * bonds[0]


def _fans(modes: Sequence[str], shape: Sequence[int], network: Network) -> tuple[float, float]:
    """fan_in and fan_out of xavier; for bonds alone those of torch, which reads the axes as (out, in, *rest)."""
    if len(shape) > 2 and {*modes} <= {*network.bonds}:
        return prod(shape[1:]), prod(shape) / shape[1]
    fan_in = _fan_in("xavier", modes, shape, network)
    return fan_in, prod(shape) / fan_in


def _fill_tiled(value: Tensor) -> None:
    columns = value.shape[-1]
    # The numbers of a row of the identity for each index of all other axes together, starting again after the last.
    rows = torch.arange(value.shape[:-1].numel()) % columns
    value.copy_(torch.eye(columns)[rows].reshape(value.shape))


def _fill_orthogonal(value: Tensor, modes: Sequence[str], by_slice: bool, generator: torch.Generator) -> None:
    for index in _slices(value, modes) if by_slice else ((),):
        factor_slice = value[index]  # a view: writing to it fills the factor
        rows = factor_slice.shape[:-1].numel() if factor_slice.ndim > 1 else 1
        matrix = torch.empty(rows, factor_slice.shape[-1])
        factor_slice.copy_(torch.nn.init.orthogonal_(matrix, generator=generator).reshape(factor_slice.shape))


def _slices(value: Tensor, modes: Sequence[str]) -> Iterator[tuple[int | slice, ...]]:
    """The indices of all slices over layer, proj, head and task."""
    choices: list[Sequence[int | slice]] = []
    for mode, size in zip(modes, value.shape, strict=True):
        choices.append(range(size) if mode in COORDINATE_MODES else [slice(None)])
    return product(*choices)
