"""Stages of a network: the modules whose outputs a condition may be made from."""

from typing import Any, cast

from torch import nn

STEMS = ("act1", "relu", "stem", "bn1", "patch_embed", "embeddings", "wte")


def stages(model: nn.Module) -> list[str]:
    """Return the paths of the stages of a network: its stem, if it has one, and the parts of its body, in order.

    ResNets of timm and torchvision: act1 or relu, and layer1 to layer4. Other networks (Mixers, ViTs, EfficientNets):
    their stem and the children of the longest Sequential or ModuleList. An encoder-decoder: the stages of its encoder.

    Args:
        model: The network.

    Returns:
        The paths of the modules.

    Raises:
        ValueError: The network has no such parts.

    Example:
        >>> stages(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0', '1', '2']
    """
    encoder = encoder_path(model)
    if encoder is not None:  # a decoder reads the answer
        return [f"{encoder}.{stage}" for stage in stages(model.get_submodule(encoder))]
    children = dict(model.named_children())
    numbered = [name for name in children if name.startswith("layer") and name[5:].isdigit()]
    body = numbered or _longest(model)
    if not body:
        raise ValueError(f"{type(model).__name__} has no stages that can be told apart: name them in condition.stages")
    # A body that lies inside of the stem's module ("embeddings.0") has it as a part already.
    stem = next((name for name in STEMS if name in children and not body[0].startswith(name)), None)
    return ([stem] if stem else []) + body


def encoder_path(model: nn.Module) -> str | None:
    """Return the path of the encoder of an encoder-decoder of transformers, None for any other model.

    Example:
        >>> encoder_path(nn.Linear(4, 2)) is None
        True
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or not hasattr(model, "get_encoder"):
        return None
    encoder = cast(Any, model).get_encoder()
    # The encoder itself may have the same configuration.
    return next((path for path, module in model.named_modules() if path and module is encoder), None)


def modules_of_answer(model: nn.Module) -> set[str]:
    """Return the paths of the modules of an encoder-decoder that the decoder runs, also if the encoder runs them too.

    Returns:
        The paths; empty for a model that is no encoder-decoder.

    Example:
        >>> modules_of_answer(nn.Linear(4, 2))
        set()
    """
    path = encoder_path(model)
    if path is None:
        return set()
    encoder = model.get_submodule(path)
    decoder = {id(module) for module in cast(Any, model).get_decoder().modules()}
    only_encoder = {id(module) for module in encoder.modules()} - decoder
    return {path for path, module in model.named_modules() if path and id(module) not in only_encoder}


def _longest(model: nn.Module) -> list[str]:
    """Return the paths of the children of the longest Sequential or ModuleList; empty if there is none."""
    parts: list[str] = []
    for path, module in model.named_modules():  # of equally long ones, the first counts
        if path and isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > max(1, len(parts)):
            parts = [f"{path}.{name}" for name, _ in module.named_children()]
    if not parts and isinstance(model, nn.Sequential):
        parts = [name for name, _ in model.named_children()]
    return parts
