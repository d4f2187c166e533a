"""Targets: which weights of a model are adapted, and the sizes of their modes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.adapters.convolutions import (
    CONVOLUTIONS,
    convolution_sizes,
    kind_of_convolution,
    outputs_per_position,
)
from metalora.adapters.head_sizes import HeadSizes
from metalora.adapters.heads import output_heads
from metalora.adapters.held_matrix import (
    MATRIX_TRANSPOSED,
    HeldMatrix,
    held_matrix,
    is_read_by_parent,
    matrices_by_name,
    matrices_in,
    parameter_name,
    paths_in_order,
    readers_of,
)
from metalora.adapters.layer_numbers import LayerNumbers
from metalora.adapters.own_forward import try_forward
from metalora.adapters.path_index import PathIndex, matches
from metalora.adapters.stored_weight import QUANTISED, why_not_writable

PRESETS = {
    "all": ("linear", "conv1d_gpt2", *CONVOLUTIONS),
    "linear": ("linear", "conv1d_gpt2"),
    "conv": CONVOLUTIONS,
}  # preset -> the kinds of layers that it takes
TRANSPOSED = ("conv1d_gpt2", "embedding", MATRIX_TRANSPOSED)  # kinds whose weight is stored as (in, out)
FUSED = ("qkv", "c_attn", "Wqkv", "qkv_proj", "in_proj_weight")  # one weight of query, then key, then value
INTO_HEADS = (
    *FUSED, "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v",
    "query_proj", "key_proj", "value_proj", "to_q", "to_k", "to_v", "wq", "wk", "wv",
    "q_proj_weight", "k_proj_weight", "v_proj_weight",
    "in_proj", "query_key_value",  # query, key and value of each head in turn: one projection
)  # fmt: skip
OUT_OF_HEADS = (
    "o_proj", "attention.output.dense", "attention.dense", "attention.out_proj", "self_attn.out_proj", "attn.out_proj",
    "attn.proj", "attn.c_proj", "attention.out_lin", "attention.o_proj", "SelfAttention.o", "EncDecAttention.o",
)  # fmt: skip

Side = Literal["", "in", "out"]


@dataclass(frozen=True)
class Target:
    """A weight to adapt.

    Attributes:
        path: Path of the layer in the model, or of a parameter that is no layer's, with the number of a matrix in it.
        kind: Kind of the layer, as `kind_of` says it; matrix, or matrix_transposed if it is stored as (in, out), for a
            weight that is substituted while the module that reads it runs.
        sizes: Sizes of its modes: in, out and, for convolutions, kh and kw; of a grouped one, `in` is that of a group.
        layer: The numbers of its layer in the model: (3,) for "encoder.layer.3.output.dense"; None outside of layers.
        role: Its path without these numbers ("encoder.layer.*.output.dense"): the projection that it is.
        parts: Number of projections that its output holds one after another: 3 for a fused qkv.
        head_dim: Size of an attention head, if the model says it.
        heads: The side that the heads are on, by its name: "out" of query, key and value, "in" behind the attention.
        groups: Groups of a convolution.
        outputs_per_position: Positions of the output for one of the input, of a transposed convolution; otherwise 1.

    Example:
        >>> layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(8, 8)}) for _ in range(2))
        >>> target = find_targets(nn.ModuleDict({"layers": layers}), "query")[1]
        >>> target.path, target.layer, target.role, target.sizes, target.heads
        ('layers.1.query', (1,), 'layers.*.query', {'out': 8, 'in': 8}, 'out')
    """

    path: str
    kind: str
    sizes: dict[str, int]
    layer: tuple[int, ...] | None = None
    role: str = ""
    parts: int = 1
    head_dim: int | None = None
    heads: Side = ""
    groups: int = 1
    outputs_per_position: int = 1


def kind_of(module: nn.Module) -> str | None:
    """Kind of a layer; None for a layer that is not supported.

    It is linear, conv1d, conv2d, conv3d, grouped_conv1d, grouped_conv2d (groups > 1), conv_transpose1d,
    conv_transpose2d, conv_transpose3d, conv1d_gpt2 or embedding.

    Example:
        >>> kind_of(nn.Conv2d(3, 4, 5)), kind_of(nn.ReLU())
        ('conv2d', None)
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, _ConvNd):
        return kind_of_convolution(module)
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # the linear layer of GPT-2 in transformers
        return "conv1d_gpt2"
    return None


def mode_sizes(module: nn.Module, kind: str) -> dict[str, int]:
    """Sizes of the modes of the weight: in, out and, for convolutions, kh and kw.

    Args:
        module: The layer.
        kind: Its kind, as `kind_of` says it.

    Example:
        >>> mode_sizes(nn.Conv2d(3, 4, 5), "conv2d")
        {'out': 4, 'in': 3, 'kh': 5, 'kw': 5}
    """
    if kind == "linear":  # a quantised weight has another shape
        return {"out": cast(int, module.out_features), "in": cast(int, module.in_features)}
    if isinstance(module, _ConvNd):
        return convolution_sizes(module)
    shape = cast(torch.Tensor, module.weight).shape
    return {"in": shape[0], "out": shape[1]}


READ_BY_ATTENTION = "nn.MultiheadAttention reads this weight itself, and presets leave such weights to you: name them"
READ_BY_ENCODER_LAYER = (
    "nn.TransformerEncoderLayer reads this weight itself in eval mode, and presets leave such weights to you: name them"
)


@dataclass(frozen=True)
class Refusal:
    """Why a layer cannot be a target.

    Attributes:
        message: What is wrong with this layer.
        reason: The same without its numbers, so that all layers of its kind have one reason.
    """

    message: str
    reason: str

    def __str__(self) -> str:
        return self.message


def refusal(model: nn.Module, path: str, module: nn.Module) -> Refusal | None:
    """Why a layer cannot be a target; None if it can.

    Args:
        model: The model that the layer is in.
        path: Its path there.
        module: The layer.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> str(refusal(model, "0", model[0]))
        'ReLU is not a layer that can be adapted (Linear, convolutions, Conv1D, Embedding)'
    """
    class_name, kind = type(module).__name__, kind_of(module)
    if kind is None:
        reason = f"{class_name} is not a layer that can be adapted"
        return Refusal(f"{reason} (Linear, convolutions, Conv1D, Embedding){_matrices_hint(path, module)}", reason)
    message, reason = why_not_writable(module)
    if message:
        return Refusal(message, reason)
    if getattr(module, "max_norm", None) is not None:
        reason = "max_norm writes into the weight in every forward, so it would not stay frozen"
        return Refusal(f"{class_name} has max_norm={module.max_norm}; {reason}", reason)
    error = try_forward(module, kind).error
    return Refusal(error, error) if error else None


def _matrices_hint(path: str, module: nn.Module) -> str:
    """Which matrices a module holds that are targets by their own names, for a message; empty if there are none."""
    names = dict.fromkeys(name.removeprefix(f"{path}.").partition(".")[0] for name in matrices_in(path, module))
    if not names:
        return ""
    return f"; it holds {' and '.join(names)}: name the parameter, such as {f'{path}.{next(iter(names))}'!r}"


def reason_of_preset(model: nn.Module, path: str, module: nn.Module) -> Refusal | None:
    """Why a preset leaves a layer out; None if it takes the layer.

    It leaves out what cannot be adapted, and what a module above reads itself: such a weight is substituted while that
    module runs, which excludes conditions that differ by example and dropout, so that it is a target by name only.

    Args:
        model: The model that the layer is in.
        path: Its path there.
        module: The layer.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> refusal(model, "0.out_proj", model[0].out_proj) is None
        True
        >>> reason_of_preset(model, "0.out_proj", model[0].out_proj).reason == READ_BY_ATTENTION
        True
    """
    reason = refusal(model, path, module)
    parent = model.get_submodule(path.rpartition(".")[0])
    if reason is not None or not is_read_by_parent(parent, module):
        return reason
    text = READ_BY_ATTENTION if isinstance(parent, nn.MultiheadAttention) else READ_BY_ENCODER_LAYER
    return Refusal(text, text)


def find_targets(model: nn.Module, targets: str | Sequence[str] = "all", exclude: Sequence[str] = ()) -> list[Target]:
    """Find the targets that a preset or patterns name.

    Args:
        model: The model.
        targets: A preset, or glob patterns of module paths or of their last components ("layer1.*.conv1", "query");
            several patterns in one string are separated by commas. The presets "all", "linear" and "conv" take every
            supported layer except the output head and embeddings, and leave out what cannot be adapted; `attach` warns
            of it, and `metalora.adapters.skipped.skipped_weights` lists it. A pattern that matches no layer may name
            matrices that a module holds itself ("experts.down_proj", "in_proj_weight"): every matrix of a stack is a
            target.
        exclude: Patterns of paths that are left out.

    Returns:
        The targets, in the model's order.

    Raises:
        ValueError: Nothing matches, or a matched layer cannot be adapted.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [target.path for target in find_targets(model, "linear")]
        ['0']
    """
    if isinstance(targets, str) and targets in PRESETS:
        paths = _paths_of_preset(model, targets)
    else:
        paths = _paths_of_patterns(model, targets.split(",") if isinstance(targets, str) else list(targets))
    paths = [path for path in paths if not any(matches(path, pattern) for pattern in exclude)]
    check_named_once(paths)
    if not paths:
        raise ValueError(f"targets {targets!r} (exclude {tuple(exclude)!r}) match nothing in {type(model).__name__}")
    chosen = {*paths}
    return targets_at(model, (path for path in paths_in_order(model) if path in chosen))


def _paths_of_preset(model: nn.Module, preset: str) -> list[str]:
    kinds, heads = PRESETS[preset], output_heads(model)
    return [
        path
        for path, module in model.named_modules()
        if kind_of(module) in kinds and path not in heads and reason_of_preset(model, path, module) is None
    ]


def _paths_of_patterns(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    modules = {path: module for path, module in model.named_modules() if path}
    layers = [path for path in modules if kind_of(modules[path])]
    matrices = matrices_by_name(model)
    module_index, matrix_index = PathIndex(modules), PathIndex(matrices)
    paths: dict[str, None] = {}  # a set that keeps its order
    for pattern in patterns:
        matched = module_index.matching(pattern)
        # A pattern such as "attention" may match a block and layers: then the layers are meant.
        matched_layers = [path for path in matched if kind_of(modules[path])]
        matched_matrices = [] if matched_layers else matrix_index.matching(pattern)
        if not (matched or matched_matrices):
            choices = {*PRESETS, *layers, *(path.rpartition(".")[2] for path in layers)}
            hint = nearest(pattern, choices)
            raise ValueError(f"target {shown(pattern)} matches no module of {type(model).__name__}{hint}")
        for path in [] if matched_matrices else matched_layers or matched:
            _check_not_refused(path, pattern, refusal(model, path, modules[path]))
            paths[path] = None
        for path in (path for name in matched_matrices for path in matrices[name]):
            _check_not_refused(path, pattern, refusal_of_matrix(model, path))
            paths[path] = None
    return list(paths)


def _check_not_refused(path: str, pattern: str, reason: Refusal | None) -> None:
    if reason is not None:
        raise ValueError(f"target {path!r} (from {pattern!r}): {reason}")


def refusal_of_matrix(model: nn.Module, path: str) -> Refusal | None:
    """Why a matrix that a module holds cannot be a target; None if it can.

    Args:
        model: The model.
        path: Path of a matrix, as `held_matrix` takes it.
    """
    matrix = held_matrix(model, path)
    assert matrix is not None, path
    if not matrix.parameter.is_floating_point():
        return Refusal(f"it is of {matrix.parameter.dtype}; {QUANTISED}", QUANTISED)
    if not readers_of(model, path):
        reason = "no module that runs holds this parameter"
        return Refusal(reason, reason)
    return None


def check_named_once(paths: Collection[str]) -> None:
    """Raise a ValueError if a layer and its weight are both targets.

    Example:
        >>> check_named_once(["fc", "fc.weight"])
        Traceback (most recent call last):
        ValueError: targets 'fc' and 'fc.weight' are one weight: name one of them
    """
    for path in paths:
        layer, _, name = path.rpartition(".")
        if name == "weight" and layer in paths:
            raise ValueError(f"targets {layer!r} and {path!r} are one weight: name one of them")


def matrix_targets(model: nn.Module) -> dict[str, list[Target]]:
    """Path of a parameter that a module holds -> the targets that are its matrices.

    Example:
        >>> [*matrix_targets(nn.Sequential(nn.MultiheadAttention(4, 2)))]
        ['0.in_proj_weight', '0.out_proj.weight']
    """
    paths = [matrix_path for path, module in model.named_modules() for matrix_path in matrices_in(path, module)]
    by_parameter: dict[str, list[Target]] = {}
    for target in targets_at(model, paths):
        matrix = held_matrix(model, target.path)
        assert matrix is not None, target.path
        by_parameter.setdefault(parameter_name(target.path, matrix), []).append(target)
    return by_parameter


def targets_at(model: nn.Module, paths: Iterable[str]) -> list[Target]:
    """The targets at some paths, in their order.

    Args:
        model: The model.
        paths: Paths of layers that can be adapted, or of matrices that a module holds.

    Example:
        >>> [target.sizes for target in targets_at(nn.Sequential(nn.Linear(8, 4)), ["0", "0.weight"])]
        [{'out': 4, 'in': 8}, {'out': 4, 'in': 8}]
    """
    head_sizes, layer_numbers = HeadSizes(model), LayerNumbers(model)
    return [_target_at(model, path, head_sizes, layer_numbers) for path in paths]


def _target_at(model: nn.Module, path: str, head_sizes: HeadSizes, layer_numbers: LayerNumbers) -> Target:
    base = held_matrix(model, path) or model.get_submodule(path)
    kind = base.kind if isinstance(base, HeldMatrix) else kind_of(base)
    assert kind is not None, path
    sizes = base.sizes if isinstance(base, HeldMatrix) else mode_sizes(base, kind)
    layer, role = layer_numbers.at(path)
    # With fewer key heads than query heads, a fused output is not three projections of equal width.
    fused = path.rpartition(".")[2] in FUSED and sizes["out"] == 3 * sizes["in"]
    parts = 3 if fused else 1
    side = _side_of_heads(path)
    width = None if side == "" else sizes[side] // (parts if side == "out" else 1)
    head_dim, groups = head_sizes.at(path, width), base.groups if isinstance(base, _ConvNd) else 1
    return Target(path, kind, sizes, layer, role, parts, head_dim, side, groups, outputs_per_position(base))


def _side_of_heads(path: str) -> Side:
    if path.rpartition(".")[2] in INTO_HEADS:
        return "out"
    if any(f".{path}".endswith(f".{name}") for name in OUT_OF_HEADS):
        return "in"
    return ""
