"""The examples run, each with a few steps, and use what they say."""

import runpy
from pathlib import Path

import pytest

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
