"""The suites of images: data and a frozen backbone, pre-trained on the seen classes only and cached."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.digest import tensor_digest
from metalora._util.processes import default_device
from metalora.config import from_dict, to_dict
from metalora.methods.registry import get_method
from metalora.zoo import load_model
from metalora_papers.config import RunConfig
from metalora_papers.content import content_of
from metalora_papers.metalora.attributes import AttributeImages
from metalora_papers.metalora.backbones import SampleBatch, pretrained
from metalora_papers.metalora.cue import CueImages
from metalora_papers.metalora.domain_images import DomainImages
from metalora_papers.metalora.domain_suite import IMAGE_SIZE, DomainSuite
from metalora_papers.metalora.episode_suite import EpisodeSuite
from metalora_papers.metalora.natural import NaturalImages
from metalora_papers.metalora.shift import ShiftImages
from metalora_papers.runs import check_full
from metalora_papers.suite import device_of

PRETRAINING_SEED = 50_000_000  # batch k of the pre-training is drawn with this seed plus k
CHECKED_IMAGES = 8  # whose features must differ
LABEL_SAMPLE = 4096  # images that are looked at to find the labels of the seen classes


def check(config: RunConfig) -> None:
    """Raise a ValueError for settings that cannot work, before anything is loaded or trained."""
    from_dict(RunConfig, to_dict(config))
    check_full(config)
    if config.adapter is not None:
        get_method(config.adapter.method).bond_sizes(config.adapter.rank, config.adapter.experts)
    if config.model and config.suite != "attributes":
        raise ValueError(f"model {config.model!r}: suite {config.suite!r} runs on its small backbone only")


def load_episodes(config: RunConfig) -> EpisodeSuite:
    """Load suite "attributes": a task is a notion of similarity, given by a labelled support set."""
    check(config)
    episodes = config.episodes
    drawn = (*episodes.trained, *episodes.held_out)
    drawn = drawn if "class" in drawn else ("class", *drawn)
    images = AttributeImages(config.data, size=episodes.size, attributes=drawn, root=config.data_root)
    seen = images.image_split.classes["seen"]
    class_index = {label: number for number, label in enumerate(seen)}

    def sample(step: int) -> tuple[Tensor, Tensor]:
        batch = images.batch("train", config.backbone.batch, PRETRAINING_SEED + step, "seen")
        return batch.images, _renumbered(batch.values["class"], class_index)

    data_key = f"attributes/{config.data}/{episodes.size}/{','.join(sorted(drawn))}/seen={tuple(seen)}"
    model, _ = _backbone_and_head(config, sample, data_key, len(seen), episodes.size)
    suite = EpisodeSuite(images, model, config, sample, _normalisation(model) if config.model else None)
    if config.model:
        _check_features(config, model, suite.normalised(sample(0)[0][:CHECKED_IMAGES]))
    return suite


@torch.no_grad()
def _check_features(config: RunConfig, model: nn.Module, images: Tensor) -> None:
    """Raise a ValueError if a pre-trained model sees nothing in images of this size."""
    features = model(images.to(device_of(model)))
    if (features == features[0]).all():
        raise ValueError(
            f"model {config.model!r}: its features are the same for all images of {config.episodes.size} pixels; "
            "set a larger size"
        )


def load_domains(config: RunConfig) -> DomainSuite:
    """Load suite "cue", "shift" or "natural": the input itself shows the domain that an adapter adapts to."""
    check(config)
    images = _domain_images(config)
    labels = images.reference_batch("train", LABEL_SAMPLE, 0, "seen")[1].unique().tolist()
    class_index = {label: number for number, label in enumerate(labels)}

    def sample(step: int) -> tuple[Tensor, Tensor]:
        batch, classes = images.reference_batch("train", config.backbone.batch, PRETRAINING_SEED + step, "seen")
        return batch, _renumbered(classes, class_index)

    data = "" if config.suite == "natural" else config.data
    data_key = f"{config.suite}/{data}/clean/seen={tuple(labels)}"
    model, head = _backbone_and_head(config, sample, data_key, len(labels), IMAGE_SIZE)
    return DomainSuite(images, model, head, class_index, config)


def _domain_images(config: RunConfig) -> DomainImages[Any]:
    if config.suite == "natural":
        return NaturalImages(root=config.data_root)
    if config.suite == "cue":
        return CueImages(config.data, root=config.data_root)
    return ShiftImages(config.data, root=config.data_root)


def _renumbered(labels: Tensor, class_index: dict[int, int]) -> Tensor:
    """Labels (n,) of the source as numbers of the seen classes, int64 (n,)."""
    return torch.tensor([class_index[int(label)] for label in labels])


def _normalisation(model: nn.Module) -> tuple[Sequence[float], Sequence[float]] | None:
    """Mean and standard deviation per channel that a pre-trained model of timm states, if it does."""
    statistics = getattr(model, "pretrained_cfg", {})
    return (statistics["mean"], statistics["std"]) if "mean" in statistics else None


def _backbone_and_head(
    config: RunConfig, sample: SampleBatch, data_key: str, classes: int, size: int
) -> tuple[nn.Module, nn.Module]:
    """Return the frozen backbone without its classifier, and the classifier."""
    if config.model:
        model: Any = load_model(config.model).requires_grad_(False)
    else:
        backbone = dataclasses.replace(config.backbone, num_classes=classes, image_size=size)
        # The first batch is part of the name of the data: other files under the same name give another backbone.
        images, labels = sample(0)
        first_batch = tensor_digest([("", images), ("", labels)])[:16]
        content = content_of(config).get("data")  # a label may have changed that is in a later batch only
        model = pretrained(backbone, sample, "/".join(filter(None, (data_key, first_batch, content))))
    model.to(default_device())
    head = model.get_classifier()
    model.reset_classifier(0)
    return model, head
