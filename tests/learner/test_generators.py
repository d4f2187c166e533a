"""What makes the core of a task: each generator reads the support set, is trained, and survives saving."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metalora import AdapterConfig, attach
from metalora.adapters.conditioning.features import channel_statistics
from metalora.config import ConditionConfig
from metalora.learner import AdaptedTask, MetaLearner
from metalora.learner.data import ArrayPreprocessor, PoolEpisodes, PreparedInputs, TaskPool, encode_labels
from metalora.learner.features import StageFeatures
from metalora.learner.generators import GENERATORS, SupportSet, make_generator
from metalora.learner.meta_training import EpisodeLoss
from metalora.learner.readouts import make_readout


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))


CP = AdapterConfig("metalora-cp", rank=3, targets=("0", "2"), condition=ConditionConfig(scope="support", hidden=8))


def inputs(count: int = 60) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1))


def attached() -> tuple[StageFeatures, Any]:
    model = network()
    adapter = attach(model, CP)
    with torch.no_grad():
        for value in adapter.learned.values():
            value.add_(0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)))
    features = StageFeatures(model, adapter)
    adapter.calibrate(inputs())
    return features, adapter


def condition_of(name: str, labels: Tensor, *, bend: float = 0.0) -> tuple[Any, Any]:
    features, adapter = attached()
    generator = make_generator(name, adapter)
    assert generator is not None
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(bend)
    support = SupportSet(inputs(), features.frozen(inputs()), labels)
    return generator(features, make_readout("kernel-ridge"), support), generator


@pytest.mark.parametrize("name", GENERATORS)
def test_the_core_depends_on_the_labels(name: str) -> None:
    first, _ = condition_of(name, (inputs()[:, 0] > 0).long(), bend=0.1)
    other, _ = condition_of(name, (inputs()[:, 1] > 0).long(), bend=0.1)
    assert len(first) == 1
    assert not torch.allclose(first.vector(), other.vector())
    again, _ = condition_of(name, (inputs()[:, 0] > 0).long(), bend=0.1)
    assert torch.equal(first.vector(), again.vector())


def test_the_gradient_step_goes_down(name: str = "gradient-step") -> None:
    labels = (inputs()[:, 0] > 0).long()
    features, adapter = attached()
    readout = make_readout("kernel-ridge")
    generator = make_generator(name, adapter)
    assert generator is not None
    support = SupportSet(inputs(), features.frozen(inputs()), labels)

    def loss(condition: Any) -> float:
        from metalora.learner.readouts import Targets

        phi = torch.cat([support.frozen, features.adapted(inputs(), condition)], 1)
        fitted = readout.train().fit(phi, Targets.classes(labels, 2))
        return float(nn.functional.cross_entropy(fitted.leave_one_out, labels).detach())

    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(np.log(1e-3))  # so small a step that the first order decides
    assert loss(generator(features, readout, support)) < loss(adapter.neutral())


def test_a_component_rule_needs_a_core_of_numbers() -> None:
    model = network()
    ring = AdapterConfig("metalora-tr", rank=2, targets=("0", "2"), condition=CP.condition)
    with pytest.raises(ValueError, match="one number for each component"):
        make_generator("component", attach(model, ring))


def test_other_adapters_have_no_generator() -> None:
    assert make_generator("mapping-net", attach(network(), AdapterConfig("lora", rank=2, targets=("0",)))) is None
    with pytest.raises(ValueError, match="did you mean 'gradient-step'"):
        make_generator("gradient-stp", None)


def test_hidden_statistics_are_those_of_the_inputs_times_left() -> None:
    features, adapter = attached()
    statistics = features.hidden_statistics(inputs(), adapter.neutral())
    left = adapter.layers["0"].left_kernel(None).flatten(0, -2)  # (ranks, inputs)
    assert torch.allclose(statistics["0"], channel_statistics((inputs() @ left.mT)[:, None]), atol=1e-6)
    with_hidden = StageFeatures(features.model, adapter, hidden=True)
    plain = features.adapted(inputs(), adapter.neutral())
    wide = with_hidden.adapted(inputs(), adapter.neutral())
    assert torch.equal(wide[:, : plain.shape[1]], plain)
    assert wide.shape[1] == plain.shape[1] + sum(part.shape[1] for part in statistics.values())


def test_static_steps_train_the_adapter_and_not_the_mapping_net() -> None:
    features, adapter = attached()
    pool = TaskPool(inputs(), {"first": encode_labels((inputs()[:, 0] > 0).tolist())})
    source = PoolEpisodes([PreparedInputs(pool, ArrayPreprocessor())], None)
    generator = make_generator("mapping-net", adapter)
    loss = EpisodeLoss(features, make_readout("kernel-ridge"), source, generator, static_parts=3)
    adapter.train()
    for step, is_static in ((2, True), (3, False)):
        adapter.zero_grad(set_to_none=True)
        loss(step).backward()
        head = adapter.required_conditioner().mapping_net.head.weight.grad
        assert (head is None) == is_static
        assert all(value.grad is not None for key, value in adapter.learned.items() if key.endswith("A"))


@pytest.mark.parametrize("name", GENERATORS)
def test_learners_with_a_generator_are_saved_whole(name: str, tmp_path: Any) -> None:
    x = inputs(120).numpy()
    settings: dict[str, Any] = {"steps": 4, "support": 24, "query": 16, "validate_every": 0, "static_steps": 2}
    learner = MetaLearner(network(), adapter=CP, generator=name, **settings)
    learner.fit({"x": list(x), "first": (x[:, 0] > 0).tolist(), "sum": (x[:, 1] + x[:, 2] > 0).tolist()}, report=False)
    task = learner.adapt(x[:40], x[:40, 0] > 0)
    assert task.condition is not None
    learner.save_pretrained(tmp_path / "learner")
    task.save_pretrained(tmp_path / "task")
    loaded = MetaLearner.from_pretrained(tmp_path / "learner", backbone=network())
    again = AdaptedTask.from_pretrained(tmp_path / "task", loaded)
    assert np.array_equal(again.decision_function(x), task.decision_function(x))
    assert np.array_equal(loaded.adapt(x[:40], x[:40, 0] > 0).decision_function(x), task.decision_function(x))
