"""Stages of a network: the modules whose outputs a condition may be made from."""

from torch import nn

STEMS = ("act1", "relu", "stem", "bn1", "patch_embed", "embeddings", "wte")


def stages(model: nn.Module) -> list[str]:
    """Return the paths of the stages of a network: its stem, if it has one, and the parts of its body, in order.

    ResNets of timm and torchvision: act1 or relu, and layer1 to layer4. Other networks (Mixers, ViTs, EfficientNets):
    their stem and the children of the longest Sequential or ModuleList.

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
    children = dict(model.named_children())
    numbered = [name for name in children if name.startswith("layer") and name[5:].isdigit()]
    body = numbered or _longest(model)
    if not body:
        raise ValueError(f"{type(model).__name__} has no stages that can be told apart: name them in condition.stages")
    # A body that lies inside of the stem's module ("embeddings.0") has it as a part already.
    stem = next((name for name in STEMS if name in children and not body[0].startswith(name)), None)
    return ([stem] if stem else []) + body


def _longest(model: nn.Module) -> list[str]:
    """Return the paths of the children of the longest Sequential or ModuleList; empty if there is none."""
    parts: list[str] = []
    for path, module in model.named_modules():  # of equally long ones, the first counts
        if path and isinstance(module, (nn.Sequential, nn.ModuleList)) and len(module) > max(1, len(parts)):
            parts = [f"{path}.{name}" for name, _ in module.named_children()]
    if not parts and isinstance(model, nn.Sequential):
        parts = [name for name, _ in model.named_children()]
    return parts
