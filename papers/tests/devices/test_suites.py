"""Experiments on a second device: a few steps and an evaluation, with the results of the CPU."""

import dataclasses

import pytest
import torch
from papers_oracles.points import CP, LORA, RUN, item_data
from papers_oracles.vision import write_pictures, write_vit

from metalora import AdapterConfig, ConditionConfig
from metalora.config import TrainConfig
from metalora_papers.execution import execute
from metalora_papers.learner.suite import LearnerSuite
from metalora_papers.suite import device_of
from metalora_papers.tenslora import images
from metalora_papers.tenslora.config import ImageRunConfig
from support.second_device import CARD

LEARNERS = {
    "original": {"adapter": None},
    "lora": {"adapter": LORA},
    "metalora-cp": {"adapter": CP},
    "a gradient step": {"adapter": CP, "generator": "gradient-step"},
}


def learner_results(run, device):
    data = item_data(run)
    data.model.to(device)
    suite = LearnerSuite(data, run)
    results = execute(run, suite=suite).row["results"]
    assert device_of(suite.readout).type == torch.device(device).type
    return results


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "lora")) for name in LEARNERS])
def test_a_learner(name):
    run = dataclasses.replace(RUN, method=name, **LEARNERS[name])
    here, there = (learner_results(run, device) for device in ("cpu", CARD))
    assert there["readout"]["episodes"] == here["readout"]["episodes"]
    assert (there["loss"] or 0) == pytest.approx(here["loss"] or 0, rel=1e-5)  # nothing is trained without an adapter


def test_pictures(tmp_path):
    write_pictures(tmp_path / "set", count=10)
    adapter = AdapterConfig("metalora-cp", 2, targets=("q_proj", "v_proj"), condition=ConditionConfig(scope="sample"))
    run = ImageRunConfig(
        data="folder:set", data_root=str(tmp_path), model=write_vit(tmp_path / "vit"), batch=8, adapter=adapter,
        method="metalora-cp", train=TrainConfig(steps=2, lr=1e-3),
    )  # fmt: skip
    here = execute(run).row["results"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "default_device", lambda: torch.device(CARD))
        row, trained, _ = execute(run)
    assert {parameter.device.type for parameter in trained.parameters()} == {CARD}
    assert row["results"]["accuracy"] == here["accuracy"]
    assert row["results"]["loss"] == pytest.approx(here["loss"], rel=1e-5)
