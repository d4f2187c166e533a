"""Matrices that a module reads itself in PEFT's folders: `target_parameters`, and LoRA of nn.MultiheadAttention.

PEFT wraps the module that has a parameter; a second parameter of the module is a wrapper around the first. The LoRA of
a stack of E matrices is lora_A (E rank, in), matrix by matrix, and lora_B (out, rank E), rank by rank. PEFT adapts
both projections of an nn.MultiheadAttention, and adds the update of out_proj twice (0.21.2): here that one is zero.

Legend: r rank · i, o channels in and out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from metalora.adapters.held_matrix import HeldMatrix, base_at, parameter_name
from metalora.adapters.layers.base import AdaptedLayer
from metalora.io.lora.tensor_names import DOWN, UP

WRAPPED = ".base_layer"
"""What PEFT adds to the path of a module for each wrapper around it."""
IN_PROJ, OUT_PROJ = "in_proj_weight", "out_proj"
OF_OUT_PROJ = f"{WRAPPED}.{OUT_PROJ}"
"""What follows the path of an nn.MultiheadAttention in the names of the LoRA of its out_proj."""


@dataclass(frozen=True)
class PeftPlace:
    """Where the LoRA of a parameter, or of a projection of attention, is in PEFT's folder.

    Attributes:
        name: The path in the names of its tensors, without PEFT's prefix.
        key: What PEFT's patterns of ranks match.
        path: Path of the target; of a stack, the path of the parameter.
        count: Number of matrices in the stack; None for one matrix.
    """

    name: str
    key: str
    path: str
    count: int | None = None


# ---- where they are -------------------------------------------------------------------------------------------------
def places_of_parameters(model: nn.Module, patterns: Collection[str]) -> dict[str, PeftPlace]:
    """Return the places of the parameters that PEFT's `target_parameters` match: path of the parameter -> place.

    Args:
        model: The base model, with or without an adapter.
        patterns: Paths of parameters, or ends of paths.

    Example:
        >>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
        >>> places_of_parameters(model, ["in_proj_weight"])["attention.in_proj_weight"].name
        'attention'
    """
    ends = tuple(f".{pattern}" for pattern in patterns)
    places = {}
    for path, module in model.named_modules():
        if not path:  # PEFT does not wrap the model itself
            continue
        names = [
            name
            for name, parameter in module._parameters.items()
            if parameter is not None and (f"{path}.{name}" in patterns or f".{path}.{name}".endswith(ends))
        ]
        for later, name in enumerate(reversed(names)):  # the last parameter has the outermost wrapper
            shape = module.get_parameter(name).shape
            count = shape[0] if len(shape) == 3 else None
            places[f"{path}.{name}"] = PeftPlace(path + later * WRAPPED, f"{path}.{name}", f"{path}.{name}", count)
    return places


def places_in_folder(model: nn.Module, patterns: Collection[str], names: Iterable[str]) -> dict[str, PeftPlace]:
    """Return the places of a folder's LoRAs that are no layers of the model: name in the folder -> place.

    Args:
        model: The base model.
        patterns: The folder's `target_parameters`.
        names: The paths in the names of its tensors.
    """
    places = {place.name: place for place in places_of_parameters(model, patterns).values()}
    for name in names:
        attention = name.removesuffix(OF_OUT_PROJ)
        if attention != name and isinstance(base_at(model, attention), nn.MultiheadAttention):
            places[name] = PeftPlace(name, attention, f"{attention}.{OUT_PROJ}")
        elif name not in places and isinstance(base_at(model, name), nn.MultiheadAttention):
            places[name] = PeftPlace(name, name, f"{name}.{IN_PROJ}")
    return places


def place_of_layer(model: nn.Module, path: str, matrix: HeldMatrix, places: Mapping[str, PeftPlace]) -> PeftPlace:
    """Return where the LoRA of an adapted matrix is in PEFT's folder.

    Args:
        model: The model.
        path: Path of the target.
        matrix: The base of its layer.
        places: The places of all parameters that are adapted.
    """
    attention = attention_of(model, path)
    return places[parameter_name(path, matrix)] if attention is None else PeftPlace(attention, attention, path)


def attention_of(model: nn.Module, path: str) -> str | None:
    """Return the path of the nn.MultiheadAttention that a target is a projection of; None for other targets.

    Example:
        >>> attention_of(nn.Sequential(nn.MultiheadAttention(4, 2)), "0.out_proj")
        '0'
    """
    attention, _, name = path.rpartition(".")
    if name not in (IN_PROJ, OUT_PROJ):
        return None
    return attention if isinstance(model.get_submodule(attention), nn.MultiheadAttention) else None


# ---- what PEFT cannot repeat ----------------------------------------------------------------------------------------
def difference_of_matrix(model: nn.Module, path: str, layer: AdaptedLayer) -> str:
    """Return why PEFT cannot adapt a matrix in the same way, as the end of a sentence; empty if it can.

    Args:
        model: The model.
        path: Path of the target.
        layer: Its layer, whose base is a `HeldMatrix`.
    """
    matrix = layer.base
    assert isinstance(matrix, HeldMatrix)
    if layer.bound.rescalers:
        return "has a magnitude, which PEFT has for layers alone"
    attention, name = attention_of(model, path), parameter_name(path, matrix)
    owner = name.rpartition(".")[0] if attention is None else attention
    if not owner:
        return "is a parameter of the model itself, which PEFT does not adapt"
    if isinstance(model.get_submodule(owner.rpartition(".")[0]), nn.TransformerEncoderLayer):
        return "is in an nn.TransformerEncoderLayer, which ignores PEFT's LoRA in eval mode; merge it instead"
    if attention is not None:
        is_out = path == f"{attention}.{OUT_PROJ}"
        return (
            "is the output of nn.MultiheadAttention, whose update PEFT adds twice; merge it instead" if is_out else ""
        )
    if isinstance(matrix.holder, nn.MultiheadAttention):
        return "is one of three separate projections of nn.MultiheadAttention, which PEFT does not adapt"
    if isinstance(matrix.holder, nn.ParameterList):
        return "is in an nn.ParameterList, which PEFT does not adapt"
    if len(matrix.parameter) == 1 and matrix.index is not None:
        return "is the only matrix of a stack, which PEFT takes for a plain layer"
    others = [place for place in places_of_parameters(model, [name]) if place != name]
    return f"cannot be told from {others[0]!r} by PEFT, which matches ends of paths" if others else ""


# ---- tensors --------------------------------------------------------------------------------------------------------
def stack_pairs(pairs: Mapping[int, tuple[Tensor, Tensor]], count: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return PEFT's two tensors of a stack of matrices.

    Args:
        pairs: Number of a matrix -> (Left (r, i), Right (r, o)); matrices that are not adapted are missing.
        count: Number of matrices E.
        rank: The rank of all, at least that of each; smaller ones are filled up with zeros.

    Returns:
        lora_A (E rank, i) and lora_B (o, rank E).

    Example:
        >>> import torch
        >>> a, b = stack_pairs({1: (torch.ones(1, 3), torch.ones(1, 2))}, count=2, rank=1)
        >>> a.tolist(), b.tolist()
        ([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]])
    """
    first_left, first_right = next(iter(pairs.values()))
    lefts = first_left.new_zeros(count, rank, first_left.shape[1])
    rights = first_right.new_zeros(count, rank, first_right.shape[1])
    for index, (left, right) in pairs.items():
        lefts[index, : len(left)], rights[index, : len(right)] = left, right
    return lefts.flatten(0, 1), rights.permute(2, 1, 0).flatten(1)


def unstack_halves(halves: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Return lora_A (r, i) and lora_B (o, r) of every matrix of a stack; those that do not fit stay as they are.

    Args:
        halves: PEFT's tensors, lora_A (E r, i) and lora_B (o, r E).
        count: Number of matrices E.
    """
    if len(halves) != 2 or any(half.ndim != 2 for half in halves.values()):
        return [dict(halves)] * count  # the caller refuses them, as those of a layer
    down, up = halves[DOWN], halves[UP]
    if len(down) % count or up.shape[1] != len(down):
        return [dict(halves)] * count
    downs = down.reshape(count, -1, down.shape[1])  # (E, r, i)
    ups = up.reshape(len(up), -1, count).permute(2, 0, 1)  # (E, o, r)
    return [{DOWN: down, UP: up} for down, up in zip(downs, ups, strict=True)]


# ---- all matrices of an adapter -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MatrixLora:
    """The LoRA of a parameter, or of a projection of attention, in PEFT's layout.

    Attributes:
        place: Where it is.
        rank: Its rank; the largest of a stack.
        down: lora_A, (rank, i) or (E rank, i).
        right: The transpose of lora_B, (rank, o) or (rank E, o).
    """

    place: PeftPlace
    rank: int
    down: Tensor
    right: Tensor


def matrix_loras(
    model: nn.Module, layers: Mapping[str, AdaptedLayer], pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> list[MatrixLora]:
    """Return the LoRAs of all adapted matrices in PEFT's layout.

    The LoRA of in_proj of an nn.MultiheadAttention comes with one of out_proj that is zero, which PEFT expects.

    Args:
        model: The model.
        layers: Path of a target -> its layer; those of layers proper are left out.
        pairs: Path of a target -> (Left (r, i), Right (r, o)).
    """
    bases: dict[str, nn.Module] = {path: layer.base for path, layer in layers.items()}
    matrices = {path: base for path, base in bases.items() if isinstance(base, HeldMatrix)}
    names = [parameter_name(path, matrix) for path, matrix in matrices.items()]
    places = places_of_parameters(model, names)
    grouped: dict[PeftPlace, dict[int | None, tuple[Tensor, Tensor]]] = {}
    for path, matrix in matrices.items():
        grouped.setdefault(place_of_layer(model, path, matrix, places), {})[matrix.index] = pairs[path]
    loras = []
    for place, group in grouped.items():
        rank = max(len(left) for left, _ in group.values())
        loras.append(_matrix_lora(place, group, rank))
        if isinstance(base_at(model, place.name), nn.MultiheadAttention) and place.key != place.path:
            left = next(iter(group.values()))[0]  # (r, width)
            zeros = left.new_zeros(left.shape)
            output = PeftPlace(place.name + OF_OUT_PROJ, place.key, f"{place.name}.{OUT_PROJ}")
            loras.append(MatrixLora(output, rank, zeros, zeros))
    return loras


def _matrix_lora(place: PeftPlace, group: Mapping[int | None, tuple[Tensor, Tensor]], rank: int) -> MatrixLora:
    if place.count is None:
        [(left, right)] = group.values()
        return MatrixLora(place, rank, left, right)
    pairs = {index: pair for index, pair in group.items() if index is not None}
    down, up = stack_pairs(pairs, place.count, rank)
    return MatrixLora(place, rank, down, up.mT)
