"""Targets: which weights of a model are adapted, and what their modes' sizes are."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from metalora._util.suggest import nearest

PRESETS = ("all", "linear", "conv")


TRANSPOSED = ("conv1d_gpt2", "embedding")  # kinds whose weight is (in, out)
FUSED = ("qkv", "c_attn", "Wqkv", "qkv_proj")  # one layer whose output is query, key and value in turn
INTO_HEADS = (
    *FUSED, "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v",
    "query_proj", "key_proj", "value_proj", "to_q", "to_k", "to_v", "wq", "wk", "wv",
    "in_proj", "query_key_value",  # in turn head by head: one projection
)  # fmt: skip
OUT_OF_HEADS = (
    "o_proj", "attention.output.dense", "attention.dense", "attention.out_proj", "self_attn.out_proj", "attn.out_proj",
    "attn.proj", "attn.c_proj", "attention.out_lin", "attention.o_proj", "SelfAttention.o", "EncDecAttention.o",
)  # fmt: skip
HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")


@dataclass(frozen=True)
class Target:
    """A weight to adapt.

    sizes     its modes: in, out and, for convolutions, kh and kw
    layer     the numbers of its layer in the model ("encoder.layer.3.output.dense": (3,)); None if it is in none
    role      its path without them ("encoder.layer.*.output.dense"): the projection it is
    parts     how many projections its output holds one after another: 3 for a fused qkv
    head_dim  the size of an attention head, where the model says it
    heads     the side that the heads are on, by the name: "out" of query, key and value, "in" behind the attention
    """

    path: str
    kind: str
    sizes: dict[str, int]
    layer: tuple[int, ...] | None = None
    role: str = ""
    parts: int = 1
    head_dim: int | None = None
    heads: Literal["", "in", "out"] = ""


def kind_of(module: nn.Module) -> str | None:
    """linear, conv1d, conv2d, conv1d_gpt2, embedding; None for what is not a supported layer."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d) and not isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "conv2d"
    if isinstance(module, nn.Conv1d):
        return "conv1d"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return "conv1d_gpt2"
    return None


def mode_sizes(module: nn.Module, kind: str) -> dict[str, int]:
    """Sizes of the modes that the base's weight has: in, out and, for convolutions, kh and kw."""
    weight = module.weight
    if kind == "conv2d":
        return dict(out=weight.shape[0], **{"in": weight.shape[1]}, kh=weight.shape[2], kw=weight.shape[3])
    if kind == "conv1d":
        return dict(out=weight.shape[0], **{"in": weight.shape[1]}, kw=weight.shape[2])
    if kind == "linear":
        return {"out": module.out_features, "in": module.in_features}
    return {"in": weight.shape[0], "out": weight.shape[1]}  # GPT-2's Conv1D and Embedding store in x out


def refusal(model: nn.Module, path: str, module: nn.Module) -> str | None:
    """Why a layer cannot be a target; None if it can."""
    kind = kind_of(module)
    if kind is None:
        return f"{type(module).__name__} is not a layer that can be adapted (Linear, Conv1d, Conv2d, Conv1D, Embedding)"
    if getattr(module, "groups", 1) != 1:
        return f"{type(module).__name__} has groups={module.groups}; grouped and depthwise convolutions are not adapted"
    if not isinstance(module.weight, torch.Tensor) or not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}; quantised weights are not adapted"
    parent = model.get_submodule(path.rpartition(".")[0]) if "." in path else model
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention reads this layer's weight itself, so a wrapper would never run"
    if isinstance(parent, nn.TransformerEncoderLayer):
        return "nn.TransformerEncoderLayer reads this layer's weight itself in eval mode"
    return None


def head_path(model: nn.Module) -> str | None:
    """The path of the output head: what the model calls it, else its last Linear."""
    for getter in ("get_classifier", "get_output_embeddings"):
        head = getattr(model, getter, lambda: None)()
        for path, module in model.named_modules():
            if module is head and head is not None:
                return path
    return next((p for p, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear)), None)


def matches(path: str, pattern: str) -> bool:
    """Whether a glob names a module's path, or its last components."""
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


def _preset(model: nn.Module, preset: str) -> list[str]:
    kinds = {"linear": ("linear", "conv1d_gpt2"), "conv": ("conv1d", "conv2d")}.get(preset)
    kinds = kinds or ("linear", "conv1d_gpt2", "conv1d", "conv2d")
    head = head_path(model)
    return [
        path
        for path, module in model.named_modules()
        if kind_of(module) in kinds and path != head and refusal(model, path, module) is None
    ]


def _patterned(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    modules = {path: module for path, module in model.named_modules() if path}
    found: dict[str, None] = {}
    for pattern in patterns:
        matched = [path for path in modules if matches(path, pattern)]
        layers = [path for path in matched if kind_of(modules[path])]
        if not matched:
            layers = [path for path in modules if kind_of(modules[path])]
            known = {*PRESETS, *layers, *(path.rpartition(".")[2] for path in layers)}
            raise ValueError(f"target {pattern!r} matches no module of {type(model).__name__}{nearest(pattern, known)}")
        for path in layers or matched:
            if why := refusal(model, path, modules[path]):
                raise ValueError(f"target {path!r} (from {pattern!r}): {why}")
            found[path] = None
    return list(found)


def find_targets(model: nn.Module, targets: str | Sequence[str] = "all", exclude: Sequence[str] = ()) -> list[Target]:
    """The targets that a preset or patterns name, in the model's order.

    Presets `all`, `linear` and `conv` take every supported layer but the output head and embeddings, and leave out
    grouped convolutions. A pattern is a glob of a module path or of its last components ("layer1.*.conv1", "query");
    several in one string are parted by commas.
    ValueError if nothing matches or a matched layer cannot be adapted.
    """
    if isinstance(targets, str) and targets in PRESETS:
        paths = _preset(model, targets)
    else:
        paths = _patterned(model, targets.split(",") if isinstance(targets, str) else list(targets))
    paths = [path for path in paths if not any(matches(path, pattern) for pattern in exclude)]
    if not paths:
        raise ValueError(f"targets {targets!r} (exclude {tuple(exclude)!r}) match nothing in {type(model).__name__}")
    order = {path: k for k, (path, _) in enumerate(model.named_modules())}
    return [target_at(model, path) for path in sorted(paths, key=order.__getitem__)]


def target_at(model: nn.Module, path: str) -> Target:
    """The target at a path, whose layer must be one that can be adapted."""
    module = model.get_submodule(path)
    kind = kind_of(module)
    sizes = mode_sizes(module, kind)
    layer, role = _numbered(model, path)
    fused = path.rpartition(".")[2] in FUSED and sizes["out"] == 3 * sizes["in"]
    heads = "out" if path.rpartition(".")[2] in INTO_HEADS else "in" if _ends(path, OUT_OF_HEADS) else ""
    return Target(path, kind, sizes, layer, role, 3 if fused else 1, _head_dim(model, path), heads)


def _ends(path: str, names: Sequence[str]) -> bool:
    return any(f".{path}".endswith(f".{name}") for name in names)


def _numbered(model: nn.Module, path: str) -> tuple[tuple[int, ...] | None, str]:
    """The layer's numbers and the role: a number counts layers if its siblings are all of one class."""
    parts, numbers = path.split("."), []
    for k, part in enumerate(parts):
        if part.isdigit():
            siblings = list(model.get_submodule(".".join(path.split(".")[:k])).children())
            if len({type(sibling) for sibling in siblings}) == 1:
                numbers.append(int(part))
                parts[k] = "*"
    return tuple(numbers) or None, ".".join(parts)


def _head_dim(model: nn.Module, path: str) -> int | None:
    """From the nearest module above that says it, else from the model's config."""
    names = path.split(".")
    above = [model.get_submodule(".".join(names[:k])) for k in range(len(names) - 1, -1, -1)]
    for owner in (*above, getattr(model, "config", None)):
        for name in ("head_dim", "attention_head_size"):
            if isinstance(getattr(owner, name, None), int):
                return getattr(owner, name)
    config = getattr(model, "config", None)
    width, heads = getattr(config, "hidden_size", None), next((getattr(config, h, None) for h in HEADS), None)
    return width // heads if width and heads else None
