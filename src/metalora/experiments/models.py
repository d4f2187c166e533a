"""Models by name, for the command line."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from metalora.config import nearest

LIBRARIES = ("timm", "torchvision", "hf", "efficientnet-lite0")
ARCHITECTURES = Path(__file__).with_name("architectures.json")


def architectures() -> dict[str, dict]:
    """The sizes of well-known transformers, by short name: what a plan needs, with no download."""
    return json.loads(ARCHITECTURES.read_text())


def load_model(name: str, *, weights: bool = True) -> nn.Module:
    """A frozen-to-be model: timm:NAME or timm:NAME@CHECKPOINT, torchvision:NAME, hf:FOLDER_OR_ID, efficientnet-lite0,
    or the short name of a well-known transformer (roberta-base).

    weights=False builds the architecture only, with no download. ValueError for a name that is not known.
    """
    library, _, rest = name.partition(":")
    known = architectures()
    if name in known:
        return _transformers(known[name]["hub"], True) if weights else _named(known[name])
    if library == "efficientnet-lite0":
        from metalora.training.backbones import efficientnet_lite0_imagenet

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
