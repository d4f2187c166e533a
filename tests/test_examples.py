"""The examples run, each with a few steps, and use what they say."""

import runpy
from pathlib import Path

import pytest
import torch

from metalora.io import adapter_file

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    path = EXAMPLES / name
    assert len(path.read_text().splitlines()) <= 150
    return runpy.run_path(str(path))["main"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path))


def test_text_classification_with_the_trainer(tmp_path, capsys):
    assert 0 <= example("text_classification.py")(steps=2, n=10) <= 1
    assert "accuracy" in capsys.readouterr().out and (tmp_path / "runs/topics/adapter_config.json").exists()


def test_image_knn(tmp_path):
    found = example("image_knn.py")(steps=2, pretrain_steps=2)
    assert set(found) == {"digit", "colour"} and (tmp_path / "notions.safetensors").exists()


def test_a_causal_model_with_trl_and_its_export(tmp_path):
    pytest.importorskip("trl")
    assert example("causal_lm.py")(steps=3) < 1e-4
    assert (tmp_path / "runs/verses/lora/adapter_model.safetensors").exists()


def test_recommendation():
    areas, difference = example("recommendation.py")(steps=2, per_topic=9, count=20, new=8)
    assert all(0 <= area <= 1 for area in areas.values())
    assert difference < 1e-3  # scores are up to 10: a reader in a batch of others, and alone


def test_an_adapter_from_a_sentence(tmp_path):
    scores, difference = example("text_to_adapter.py")(steps=2, pretrain_steps=2, tasks=6, new_tasks=3)
    assert len(scores) == 5 and all(0 <= score <= 1 for score in scores.values())
    assert difference < 1e-4 and (tmp_path / "lora/adapter_config.json").exists()


def test_two_towers(tmp_path):
    names = ["cat", "dog", "sun", "red apple", "fish", "tree", "house", "car", "boat", "rain"]
    images = torch.randint(256, (len(names), 2, 64, 64, 3), generator=torch.Generator().manual_seed(0)).byte()
    scores = example("two_towers.py")(steps=2, projection_steps=2, pairs=(names, images))
    assert all(0 <= score["recall@1"] <= score["recall@10"] == 1 for score in scores.values())  # of two drawings
    description, tensors = adapter_file.read(tmp_path / "towers.safetensors")
    layers = {"text": set(), "image": set()}
    for path, target in description["targets"].items():
        layers[path.split(".")[0]].add(target["coords"]["layer"])
    assert layers["text"] and layers["text"].isdisjoint(layers["image"])  # no layer of one is a layer of the other
    assert tensors["factors/G2"].shape[1] == len(layers["text"] | layers["image"])


def test_lightning(tmp_path):
    pytest.importorskip("lightning")
    scores = example("lightning_module.py")(steps=60, pretrain_steps=40)
    assert scores["after"] > scores["before"] + 0.2 and (tmp_path / "digits.safetensors").exists()


def test_sentence_transformers(tmp_path):
    pytest.importorskip("sentence_transformers")
    figures = example("sentence_encoder.py")(steps=2)
    assert figures["adapted"] > figures["frozen"] and figures["difference"] < 1e-6


TRAIN = """
import argparse, torch
from timm import create_model
from timm.optim import create_optimizer_v2

parser = argparse.ArgumentParser()
parser.add_argument("--model")
model = create_model(parser.parse_args().model, num_classes=2)
before = {name: value.clone() for name, value in model.state_dict().items()}
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2)
for _ in range(2):
    torch.nn.functional.cross_entropy(model(torch.rand(4, 3, 32, 32)), torch.arange(4) % 2).backward()
    optimizer.step(), optimizer.zero_grad()
changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
assert "fc.weight" in changed and any("conv" in name for name in changed)
torch.save(changed, "changed.pt")
"""


def test_the_train_script_of_timm(tmp_path, capsys, monkeypatch):
    timm = pytest.importorskip("timm")
    for module in (timm, timm.models):
        monkeypatch.setattr(module, "create_model", timm.create_model)
    monkeypatch.setattr("sys.argv", ["timm_train.py"])
    (tmp_path / "train.py").write_text(TRAIN)
    example("timm_train.py")("train.py", "--model", "resnet18")
    assert "numbers of lora in 20 layers" in capsys.readouterr().out
    changed = torch.load("changed.pt")
    assert not [name for name in changed if name.startswith(("conv1.weight", "bn1")) or name.endswith("running_mean")]
