"""Fine-tuning to one task: every method, the best step, the folder, and labels that make no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import metalora
from metalora import AdapterConfig
from metalora.config import ConditionConfig
from metalora.learner import FineTuned, finetune
from metalora.learner.features import StageFeatures
from metalora.learner.finetuning_data import HeldOutScore, stratified_split

WIDTH = 8


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))


def example(count: int = 120) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(count, WIDTH)).astype("float32")
    return x, np.where(x[:, 0] * x[:, 1] > 0, "same", "other")


def tuned(method: str | AdapterConfig, **settings: Any) -> FineTuned:
    return finetune(network(), *example(), method, **({"steps": 30, "validate_every": 10} | settings))


METHODS = {
    "full": "full",
    "head": "head",
    "lora": AdapterConfig("lora", rank=4, targets=("0", "2")),
    "eva": AdapterConfig("lora", rank=4, targets=("0", "2"), init="eva"),
    "biases": AdapterConfig("lora", rank=4, targets=("0", "2"), bias="all"),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_training_is_never_worse_than_the_head_alone(method: str | AdapterConfig, tmp_path: Path) -> None:
    model = tuned(method, steps=60)
    scores = model.scores_
    assert scores.inputs == 24 and scores.accuracy >= scores.head_alone
    x, y = example()
    assert model.score(x, y) > 0.6
    again = FineTuned.from_pretrained(model.save_pretrained(tmp_path / "run"), backbone=network())
    assert np.allclose(again.predict_proba(x), model.predict_proba(x))
    assert again.classes_.tolist() == ["other", "same"] and again.scores_ == scores


@pytest.mark.parametrize("method", ("head", METHODS["lora"]), ids=("head", "lora"))
def test_a_head_reads_all_stages(method: str | AdapterConfig, tmp_path: Path) -> None:
    model = tuned(method, features="stages")
    x, _ = example()
    stages = StageFeatures(model.backbone.model, model.adapter)
    inputs = torch.from_numpy(x)
    expected = stages.frozen(inputs) if model.adapter is None else stages.adapted(inputs)
    assert expected.shape == (len(x), 5 * 16)  # three layers and two activations
    torch.testing.assert_close(model.features(x), expected.detach())
    again = FineTuned.from_pretrained(model.save_pretrained(tmp_path / "run"), backbone=network())
    assert np.allclose(again.predict_proba(x), model.predict_proba(x))


def test_an_adapter_learns_what_the_frozen_features_do_not_tell() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(1).normal(size=(400, WIDTH)).astype("float32")
    y = x[:, 0] * x[:, 1] > 0
    bottleneck = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 4), nn.ReLU(), nn.Linear(4, 4))
    adapter = AdapterConfig("lora", rank=4, targets=("0", "2"))
    scores = finetune(bottleneck, x, y, adapter, steps=300, lr=2e-2).scores_
    assert scores.accuracy > scores.head_alone + 0.1 and scores.step > 0


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.dense(torch.relu(self.query(x) + self.value(x)))


class Encoder(nn.Module):
    """A network whose paths have the numbers of layers and the names of projections."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("method", metalora.methods())
def test_every_method_of_the_registry(method: str) -> None:
    config = AdapterConfig(method, 2, targets=("query", "value"), clip_rank=True, experts=2, head_dim=4)
    model = finetune(Encoder(), *example(), config, steps=2, validate_every=2)
    assert model.predict(example()[0][:3]).shape == (3,)


def test_the_scores_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    score = HeldOutScore.of(torch.from_numpy(predicted), torch.from_numpy(truth), 4, step=0)
    assert score.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert score.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_every_class_is_trained_on_and_kept() -> None:
    codes = torch.tensor([0] * 50 + [1] * 2 + [2] * 8)
    trained, kept = stratified_split(codes, 0.25, seed=3)
    assert sorted([*trained.tolist(), *kept.tolist()]) == list(range(60))
    assert torch.bincount(codes[kept]).tolist() == [12, 1, 2]


def test_inputs_of_one_group_are_not_both_trained_on_and_kept() -> None:
    codes, groups = torch.arange(120) % 2, torch.arange(120) // 4
    trained, kept = stratified_split(codes, 0.2, 0, groups)
    assert len(trained) + len(kept) == 120 and not set(groups[trained].tolist()) & set(groups[kept].tolist())
    assert abs(len(kept) - 24) <= 4 and 0.4 < codes[kept].double().mean() < 0.6
    x, y = example()
    twins, labels = np.concatenate([x, x]), np.concatenate([y, y])  # a kept input would have a trained twin
    model = finetune(network(), twins, labels, "head", groups=[f"twin {k % 120}" for k in range(240)], steps=1)
    assert model.scores_.inputs == 48
    with pytest.raises(ValueError, match="groups: 3 groups, but holdout_items 0.2 needs at least 5"):
        stratified_split(codes, 0.2, 0, torch.arange(120) % 3)
    with pytest.raises(ValueError, match="all inputs of 30 classes are in one group"):
        stratified_split(groups, 0.2, 0, groups)


def test_novelty_is_high_far_from_the_training_inputs() -> None:
    model = tuned("head", steps=0)
    x = np.random.default_rng(5).normal(size=(40, WIDTH)).astype("float32")
    _, near = model.predict_with_novelty(x)
    _, far = model.predict_with_novelty(50 * x)
    assert near.mean() < 0.8 and (far == 1).all()


# ---- bad input -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 20, "at least 2 classes"),
        (["a"] * 19 + ["b"], "class 'b' has one example"),
        (list(range(20)), "20 classes for 20 inputs"),
        (["a", None] * 10, "10 of 20 are missing"),
        (list(np.linspace(0, 1, 20)), "is a measurement"),
        ([{"a", "b"}] * 20, "one class for each input"),
    ],
)
def test_labels_that_are_no_classes(labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(network(), example(20)[0], labels, "head")


def test_mistakes_are_named() -> None:
    x, y = example()
    with pytest.raises(ValueError, match="lroa.*did you mean 'lora'"):
        finetune(network(), x, y, "lroa")
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        finetune(network(), x, y, "head", stepz=3)
    with pytest.raises(ValueError, match="holdout_items is 1.5"):
        finetune(network(), x, y, "head", holdout_items=1.5)
    with pytest.raises(ValueError, match="scope sample"):
        condition = ConditionConfig(scope="support", hidden=4)
        finetune(network(), x, y, AdapterConfig("metalora-cp", 2, targets=("0", "2"), condition=condition))
    x[3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        finetune(network(), x, y, "head")


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_backbone_with_another_bias_is_refused(method: str, tmp_path: Path) -> None:
    folder = tuned(METHODS[method], steps=0).save_pretrained(tmp_path / "run")
    other = network()
    with torch.no_grad():
        other[4].bias[-1] += 1
    with pytest.raises(ValueError, match=f"{folder}.*other parameters or buffers of the base"):
        FineTuned.from_pretrained(folder, backbone=other)


def test_a_changed_folder_is_refused(tmp_path: Path) -> None:
    folder = tuned("head", steps=0).save_pretrained(tmp_path / "run")
    content = bytearray((folder / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "head.safetensors").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="checksum"):
        FineTuned.from_pretrained(folder, backbone=network())
    with pytest.raises(ValueError, match="has no name"):
        (folder / "head.safetensors").write_bytes(bytes([*content[:-1], content[-1] ^ 1]))
        FineTuned.from_pretrained(folder)
    with pytest.raises(ValueError, match="not the folder of a fine-tuned network"):
        FineTuned.from_pretrained(tmp_path)
