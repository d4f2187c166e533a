"""Output heads: the layers that turn what a network has computed into its answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from torch import nn

HEADS_OF_TRANSFORMERS = (
    "score", "classifier", "qa_outputs", "lm_head", "lm_heads", "cls", "logits_proj", "classification_head",
    "cls_classifier", "distillation_classifier", "class_labels_classifier", "bbox_predictor", "decode_head",
    "class_embed", "bbox_embed", "qa_classifier", "ctc_head", "ctc_proj", "predictions", "mim_head", "mlm_head",
    "vocab_projector", "generator_lm_head", "answer_head", "itm_head", "class_head", "box_head", "embed_out", "lm_loss",
)  # fmt: skip
"""What models of transformers with a task call their heads, if `get_output_embeddings` does not give them."""
HEADS_OF_TORCHVISION = ("fc", "classifier", "heads", "head")
FOR_A_TASK = re.compile(r"For[A-Z]|LMHead|DoubleHeads")  # in the names of the classes of transformers
BASES = ("base", "base_layer")  # what adapted layers call the layer that they adapt


def head_path(model: nn.Module) -> str | None:
    """Path of the output head; the first one, if there are several. None for a network without a head.

    Example:
        >>> head_path(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)))
        '1'
    """
    return next(iter(output_heads(model)), None)


def output_heads(model: nn.Module) -> tuple[str, ...]:
    """Paths of the output heads of a model; a head of several layers counts by its last one.

    A model of timm or transformers says which layer it is. One of transformers without a task, such as LlamaModel or
    BertModel, has none: its last Linear is a projection of its last block. In any other network the head is the part
    with a name that torchvision uses ("fc", "classifier", "heads", "head"), otherwise the last layer, if this is a
    Linear and not a part of a block that is repeated. An `nn.Identity` in the place of a head is one: it has no weight,
    and its input is the pooled last layer.

    Args:
        model: The model, with or without an adapter.

    Example:
        >>> output_heads(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
        ('2',)
        >>> block = nn.TransformerEncoderLayer(8, 2, 8)
        >>> output_heads(nn.TransformerEncoder(block, 2, enable_nested_tensor=False))
        ()
    """
    if hasattr(model, "get_classifier"):
        return _paths(model, cast(Any, model).get_classifier())
    if _is_of_transformers(model):
        return _heads_of_transformers(model)
    parts = [part for name, part in model.named_children() if name in HEADS_OF_TORCHVISION]
    return _paths(model, parts[-1]) if parts else _last_linear(model)


def _is_of_transformers(model: nn.Module) -> bool:
    return hasattr(model, "get_output_embeddings") and hasattr(model, "base_model_prefix")


def _heads_of_transformers(model: nn.Module) -> tuple[str, ...]:
    output = cast(Any, model).get_output_embeddings()
    if output is not None:
        return _paths(model, output)
    base = getattr(model, cast(str, model.base_model_prefix), model)
    if base is model and not FOR_A_TASK.search(type(model).__name__):
        return ()
    children = [(name, child) for name, child in model.named_children() if child is not base]
    parts = [child for name, child in children if name in HEADS_OF_TRANSFORMERS]
    parts = parts or [child for name, child in children if name == "head"]  # ModernBERT has a "head" and a "classifier"
    if not parts and FOR_A_TASK.search(type(model).__name__):
        parts = [child for _, child in children if any(_layers(child))][-1:]
    if parts or base is model or not isinstance(base, nn.Module):
        return _paths(model, parts)
    # A wrapper around a network of another library, such as TimmWrapperModel
    return tuple(f"{model.base_model_prefix}.{path}" for path in output_heads(base) if hasattr(base, "get_classifier"))


def _paths(model: nn.Module, parts: Any) -> tuple[str, ...]:
    """Paths of the last layers of parts of a model.

    Args:
        model: The model.
        parts: A module, or a list or tuple of modules; a ModuleList counts as the modules in it.
    """
    if isinstance(parts, (list, tuple, nn.ModuleList)):
        return tuple(path for part in parts for path in _paths(model, part))
    path = next((path for path, module in model.named_modules() if module is parts), None)
    if path is None:
        return ()
    layers = [f"{path}.{name}".strip(".") for name, _ in _layers(parts)]
    if layers:
        return (layers[-1],)
    return (path,) if isinstance(parts, nn.Identity) else ()


def _last_linear(model: nn.Module) -> tuple[str, ...]:
    """The last layer of a network whose parts have no names that say what they are, if it can be the head."""
    layers = list(_layers(model))
    if not layers:
        return ()
    path, layer = layers[-1]
    words = path.split(".")
    for depth in range(1, len(words)):
        above = ".".join(words[:depth])
        part = model.get_submodule(above)
        if hasattr(part, "get_classifier") or _is_of_transformers(part):
            return tuple(f"{above}.{head}" for head in output_heads(part))
        if _is_repeated(model.get_submodule(".".join(words[: depth - 1])), words[depth - 1], part):
            return ()
    return (path,) if isinstance(_unwrapped(layer), nn.Linear) else ()


def _is_repeated(container: nn.Module, name: str, part: nn.Module) -> bool:
    """Whether a part is one of several blocks of one class in a list. Stages that are Sequentials are not blocks."""
    is_block = name.isdigit() and type(part) is not nn.Sequential
    return is_block and len({type(sibling) for sibling in container.children()}) == 1


def _layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linear layers and convolutions of a module by their paths in it; an adapted layer counts as one layer."""
    if _is_layer(_unwrapped(module)):
        yield prefix, module
        return
    for name, child in module.named_children():
        yield from _layers(child, f"{prefix}.{name}".lstrip("."))


def _is_layer(module: nn.Module) -> bool:
    # "Conv1D" is the linear layer of GPT-2 in transformers.
    return isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) or type(module).__name__ == "Conv1D"


def _unwrapped(module: nn.Module) -> nn.Module:
    """The layer that an adapted layer adapts; any other module as it is."""
    bases = [module._modules[name] for name in BASES if name in module._modules]
    return next((base for base in bases if base is not None and _is_layer(base)), module)
