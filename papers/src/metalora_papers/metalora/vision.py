"""One run of the benchmark: a suite, a frozen backbone, an adapter, a seed -> one row."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalora._util.digest import tensor_digest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach, count_params
from metalora.adapters.targets import find_targets
from metalora.bench.store import finished_row
from metalora.config import AdapterConfig, from_dict, to_dict
from metalora.io.adapter_file import round_as_saved
from metalora.methods.registry import get_method
from metalora.training.loop import fit
from metalora.zoo import load_model
from metalora_papers.config import RunConfig
from metalora_papers.metalora.backbones import buffers_hash, pretrained
from metalora_papers.metalora.domain_experiment import DomainExperiment
from metalora_papers.metalora.episode_experiment import EpisodeExperiment

IGNORED = 0.02  # a condition of another task that costs less than this is not used


@dataclass
class Prepared:
    """A run before its adapter: the experiment, the model that embeds, and the frozen head on seen classes."""

    experiment: EpisodeExperiment | DomainExperiment
    model: nn.Module
    calibration: Callable[[], list[torch.Tensor]]


def check(config: RunConfig) -> None:
    """ValueError for settings that cannot work, before anything is loaded or trained."""
    from_dict(RunConfig, to_dict(config))
    if config.adapter is not None:
        get_method(config.adapter.method).bond_sizes(config.adapter.rank, config.adapter.experts)
    if config.model and config.suite != "attributes":
        raise ValueError(f"model {config.model!r}: suite {config.suite!r} runs on its small backbone only")


def prepare(config: RunConfig) -> Prepared:
    """Load the data and the frozen backbone (pre-trained on seen classes only, cached)."""
    check(config)
    if config.suite == "attributes":
        return _prepare_episodes(config)
    return _prepare_domains(config)


def _prepare_episodes(config: RunConfig) -> Prepared:
    from metalora_papers.metalora.attributes import AttributeSuite

    episodes = config.episodes
    drawn = (*episodes.trained, *episodes.held_out)
    drawn = drawn if "class" in drawn else ("class", *drawn)
    suite = AttributeSuite(config.data, size=episodes.size, attributes=drawn, root=config.data_root)
    seen = suite.pool.classes["seen"]
    index = {label: k for k, label in enumerate(seen)}

    def sample(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = suite.batch("train", config.backbone.batch, 50_000_000 + step, "seen")
        return batch.images, torch.tensor([index[int(label)] for label in batch.values["class"]])

    key = f"attributes/{config.data}/{episodes.size}/{','.join(sorted(drawn))}/seen={tuple(seen)}"
    model, _ = _backbone(config, sample, key, len(seen), episodes.size)
    statistics = getattr(model, "pretrained_cfg", {}) if config.model else {}
    normalise = (statistics["mean"], statistics["std"]) if "mean" in statistics else None
    experiment = EpisodeExperiment(suite, model, episodes, config.seed, config.split, normalise)
    return Prepared(experiment, model, lambda: [experiment.normalised(sample(10**6 + k)[0]) for k in range(8)])


def _prepare_domains(config: RunConfig) -> Prepared:
    from metalora_papers.metalora.cue import CueSuite
    from metalora_papers.metalora.natural import NaturalSuite
    from metalora_papers.metalora.shift import ShiftSuite

    if config.suite == "natural":
        suite = NaturalSuite(root=config.data_root)
    else:
        suite = {"cue": CueSuite, "shift": ShiftSuite}[config.suite](config.data, root=config.data_root)
    labels = suite.reference_batch("train", 4096, 0, "seen")[1].unique().tolist()
    index = {label: k for k, label in enumerate(labels)}

    def sample(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, found = suite.reference_batch("train", config.backbone.batch, 50_000_000 + step, "seen")
        return images, torch.tensor([index[int(label)] for label in found])

    data = "" if config.suite == "natural" else config.data
    model, head = _backbone(config, sample, f"{config.suite}/{data}/clean/seen={tuple(labels)}", len(labels), 28)
    experiment = DomainExperiment(suite, model, head, index, config.domains, config.seed, config.split)
    return Prepared(experiment, model, experiment.calibration)


def _backbone(config: RunConfig, sample: Any, key: str, classes: int, size: int) -> tuple[nn.Module, nn.Module]:
    if config.model:
        model = load_model(config.model).requires_grad_(False)
        head = model.get_classifier()
        model.reset_classifier(0)
        return model, head
    backbone = dataclasses.replace(config.backbone, num_classes=classes, image_size=size)
    images, labels = sample(0)  # part of the name of the data: other files under the same name give another backbone
    first = tensor_digest([("", images), ("", labels)])[:16]
    model = pretrained(backbone, sample, f"{key}/{first}")
    head = model.get_classifier()
    model.reset_classifier(0)
    return model, head


def execute(
    config: RunConfig,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    prepared: Prepared | None = None,
) -> tuple[dict, Adapter | None]:
    """Train (unless the run is the original) and score: the row, and the adapter, still attached to its model."""
    start = time.monotonic()
    prepared = prepared or prepare(config)
    model, experiment = prepared.model, prepared.experiment
    adapter, losses = None, []
    if config.adapter is not None:
        buffers = buffers_hash_of_base(model)
        adapter = attach(model, config.adapter, example=torch.zeros(1, 3, *_image_size(config)))
        if adapter.conditional:
            adapter.calibrate(prepared.calibration())
        step_loss = experiment.loss(adapter, config.train.penalty)
        losses = fit(model, adapter, step_loss, config.train, seed=config.seed, checkpoint=checkpoint, on_step=on_step)
        round_as_saved(adapter, getattr(torch, config.train.store))
        if buffers_hash_of_base(model) != buffers:
            raise RuntimeError("training changed a buffer of the frozen backbone")
    results = experiment.evaluate(adapter)
    results |= {
        "num_params": adapter.num_params() if adapter is not None else 0,
        "loss": sum(losses[-50:]) / len(losses[-50:]) if losses else None,
    }
    _warn_if_ignored(config, results)
    return finished_row(config, results, start), adapter


def buffers_hash_of_base(model: nn.Module) -> str:
    """The hash of the backbone's own buffers, whether or not an adapter is attached."""
    own = nn.Module()
    for name, buffer in model.named_buffers():
        if ".adapter." not in f".{name}.":
            own.register_buffer(name.replace(".base.", ".").replace(".", "/"), buffer)
    return buffers_hash(own)


def _image_size(config: RunConfig) -> tuple[int, int]:
    size = config.episodes.size if config.suite == "attributes" else 28
    return size, size


def _warn_if_ignored(config: RunConfig, results: dict) -> None:
    own, other = results.get("own_condition"), results.get("other_condition")
    if own is None or other is None:
        return
    results["condition_used"] = own - other > IGNORED
    if not results["condition_used"]:
        warnings.warn(
            f"{config.method}: the condition is ignored: accuracy {own:.3f} with its own, {other:.3f} with another's",
            stacklevel=2,
        )


def matched_rank(model: nn.Module, config: AdapterConfig, budget: int) -> int:
    """The smallest rank at which a static adapter has at least `budget` parameters; ValueError if none has."""
    targets = find_targets(model, config.targets, config.exclude)
    step = config.experts if config.method == "moe-lora" else 1
    for rank in range(step, 513, step):
        if count_params(dataclasses.replace(config, rank=rank), targets) >= budget:
            return rank
    raise ValueError(f"method {config.method!r} cannot reach {budget} parameters on these targets")
