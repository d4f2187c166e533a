"""Targets: which weights of a model are adapted, and the sizes of their modes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

import torch
from torch import nn

from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.adapters.own_forward import try_forward
from metalora.adapters.stored_weight import why_not_writable

PRESETS = {
    "all": ("linear", "conv1d_gpt2", "conv1d", "conv2d"),
    "linear": ("linear", "conv1d_gpt2"),
    "conv": ("conv1d", "conv2d"),
}  # preset -> the kinds of layers that it takes
TRANSPOSED = ("conv1d_gpt2", "embedding")  # kinds whose weight is stored as (in, out)
FUSED = ("qkv", "c_attn", "Wqkv", "qkv_proj")  # one layer whose output is query, then key, then value
INTO_HEADS = (
    *FUSED, "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v",
    "query_proj", "key_proj", "value_proj", "to_q", "to_k", "to_v", "wq", "wk", "wv",
    "in_proj", "query_key_value",  # query, key and value of each head in turn: one projection
)  # fmt: skip
OUT_OF_HEADS = (
    "o_proj", "attention.output.dense", "attention.dense", "attention.out_proj", "self_attn.out_proj", "attn.out_proj",
    "attn.proj", "attn.c_proj", "attention.out_lin", "attention.o_proj", "SelfAttention.o", "EncDecAttention.o",
)  # fmt: skip
NUMBER_OF_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")  # names in the configs of models
HEAD_SIZE = ("head_dim", "attention_head_size")

Side = Literal["", "in", "out"]


@dataclass(frozen=True)
class Target:
    """A weight to adapt.

    Attributes:
        path: Path of the layer in the model.
        kind: Kind of the layer: linear, conv1d, conv2d, conv1d_gpt2 or embedding.
        sizes: Sizes of its modes: in, out and, for convolutions, kh and kw.
        layer: The numbers of its layer in the model: (3,) for "encoder.layer.3.output.dense"; None outside of layers.
        role: Its path without these numbers ("encoder.layer.*.output.dense"): the projection that it is.
        parts: Number of projections that its output holds one after another: 3 for a fused qkv.
        head_dim: Size of an attention head, if the model says it.
        heads: The side that the heads are on, by its name: "out" of query, key and value, "in" behind the attention.

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


def kind_of(module: nn.Module) -> str | None:
    """Kind of a layer: linear, conv1d, conv2d, conv1d_gpt2 or embedding; None for a layer that is not supported.

    Example:
        >>> kind_of(nn.Conv2d(3, 4, 5)), kind_of(nn.ReLU())
        ('conv2d', None)
    """
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d) and not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "conv2d"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
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
    shape = _weight(module).shape
    if kind == "conv2d":
        return {"out": shape[0], "in": shape[1], "kh": shape[2], "kw": shape[3]}
    if kind == "conv1d":
        return {"out": shape[0], "in": shape[1], "kw": shape[2]}
    return {"in": shape[0], "out": shape[1]}


def _weight(module: nn.Module) -> torch.Tensor:
    return cast(torch.Tensor, module.weight)


READ_BY_ATTENTION = "nn.MultiheadAttention reads this weight itself, so a wrapper would never run"


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
        >>> model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6))
        >>> str(refusal(model, "0", model[0]))
        'Conv2d has groups=6; grouped and depthwise convolutions are not adapted'
    """
    class_name = type(module).__name__
    if kind_of(module) is None:
        reason = f"{class_name} is not a layer that can be adapted"
        return Refusal(f"{reason} (Linear, Conv1d, Conv2d, Conv1D, Embedding)", reason)
    groups = getattr(module, "groups", 1)
    if groups != 1:
        reason = "grouped and depthwise convolutions are not adapted"
        return Refusal(f"{class_name} has groups={groups}; {reason}", reason)
    message, reason = why_not_writable(module)
    if message:
        return Refusal(message, reason)
    if getattr(module, "max_norm", None) is not None:
        reason = "max_norm writes into the weight in every forward, so it would not stay frozen"
        return Refusal(f"{class_name} has max_norm={module.max_norm}; {reason}", reason)
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return Refusal(READ_BY_ATTENTION, READ_BY_ATTENTION)
    if isinstance(parent, nn.TransformerEncoderLayer):
        reason = "nn.TransformerEncoderLayer reads this weight itself in eval mode"
        return Refusal(reason, reason)
    error = try_forward(module, str(kind_of(module))).error
    return Refusal(error, error) if error else None


def head_path(model: nn.Module) -> str | None:
    """Path of the output head: the one that the model names, otherwise its last Linear; None if it has none.

    Example:
        >>> head_path(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
        '1'
    """
    path_of: dict[nn.Module, str] = {module: path for path, module in model.named_modules()}
    for getter in ("get_classifier", "get_output_embeddings"):
        head = getattr(model, getter, lambda: None)()
        if head in path_of:
            return path_of[head]
    # timm and transformers name the head; without a name, the classifier of a plain network is its last Linear.
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def matches(path: str, pattern: str) -> bool:
    """Whether a glob pattern matches the path of a module, or its last components.

    Example:
        >>> matches("encoder.layer.0.attention.query", "attention.query")
        True
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def find_targets(model: nn.Module, targets: str | Sequence[str] = "all", exclude: Sequence[str] = ()) -> list[Target]:
    """Find the targets that a preset or patterns name.

    Args:
        model: The model.
        targets: A preset, or glob patterns of module paths or of their last components ("layer1.*.conv1", "query");
            several patterns in one string are separated by commas. The presets "all", "linear" and "conv" take every
            supported layer except the output head and embeddings, and leave out what cannot be adapted; `attach` warns
            of it, and `metalora.adapters.skipped.skipped_weights` lists it.
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
    if not paths:
        raise ValueError(f"targets {targets!r} (exclude {tuple(exclude)!r}) match nothing in {type(model).__name__}")
    order = {path: place for place, (path, _) in enumerate(model.named_modules())}
    return [target_at(model, path) for path in sorted(paths, key=order.__getitem__)]


def _paths_of_preset(model: nn.Module, preset: str) -> list[str]:
    kinds, head = PRESETS[preset], head_path(model)
    return [
        path
        for path, module in model.named_modules()
        if kind_of(module) in kinds and path != head and refusal(model, path, module) is None
    ]


def _paths_of_patterns(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    modules = {path: module for path, module in model.named_modules() if path}
    layers = [path for path in modules if kind_of(modules[path])]
    paths: dict[str, None] = {}  # a set that keeps its order
    for pattern in patterns:
        matched = [path for path in modules if matches(path, pattern)]
        if not matched:
            choices = {*PRESETS, *layers, *(path.rpartition(".")[2] for path in layers)}
            hint = nearest(pattern, choices)
            raise ValueError(f"target {shown(pattern)} matches no module of {type(model).__name__}{hint}")
        # A pattern such as "attention" may match a block and layers: then the layers are meant.
        matched_layers = [path for path in matched if kind_of(modules[path])]
        for path in matched_layers or matched:
            reason = refusal(model, path, modules[path])
            if reason is not None:
                raise ValueError(f"target {path!r} (from {pattern!r}): {reason}")
            paths[path] = None
    return list(paths)


def target_at(model: nn.Module, path: str) -> Target:
    """The target at a path.

    Args:
        model: The model.
        path: Path of a layer that can be adapted.
    """
    module = model.get_submodule(path)
    kind = kind_of(module)
    assert kind is not None, path
    sizes = mode_sizes(module, kind)
    layer, role = _layer_and_role(model, path)
    # With fewer key heads than query heads, a fused output is not three projections of equal width.
    fused = path.rpartition(".")[2] in FUSED and sizes["out"] == 3 * sizes["in"]
    parts = 3 if fused else 1
    return Target(path, kind, sizes, layer, role, parts, _head_size(model, path), _side_of_heads(path))


def _side_of_heads(path: str) -> Side:
    if path.rpartition(".")[2] in INTO_HEADS:
        return "out"
    if any(f".{path}".endswith(f".{name}") for name in OUT_OF_HEADS):
        return "in"
    return ""


def _layer_and_role(model: nn.Module, path: str) -> tuple[tuple[int, ...] | None, str]:
    """The numbers of the layer, and the role: a number counts layers if all its siblings are of one class."""
    words = path.split(".")
    role = list(words)
    numbers = []
    for place, word in enumerate(words):
        if word.isdigit():
            siblings = model.get_submodule(".".join(words[:place])).children()
            if len({type(sibling) for sibling in siblings}) == 1:
                numbers.append(int(word))
                role[place] = "*"
    return tuple(numbers) or None, ".".join(role)


def _head_size(model: nn.Module, path: str) -> int | None:
    """Size of an attention head, from the nearest module above that says it, otherwise from the model's config."""
    words = path.split(".")
    config = getattr(model, "config", None)
    modules_above = [model.get_submodule(".".join(words[:depth])) for depth in range(len(words) - 1, -1, -1)]
    for owner in (*modules_above, config):
        for name in HEAD_SIZE:
            size = getattr(owner, name, None)
            if isinstance(size, int):
                return size
    width = getattr(config, "hidden_size", None)
    heads = next((getattr(config, name) for name in NUMBER_OF_HEADS if hasattr(config, name)), None)
    # Networks in stages, such as Swin, have a list of numbers, one for each stage.
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
