"""The main job as the demo shows it: a saved adapter is loaded and used on a few labelled examples."""

import io

from rich.console import Console

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora_papers.config import BackboneConfig, RunConfig
from metalora_papers.metalora.demo import show_use
from metalora_papers.registry import open_suite


def test_a_saved_adapter_is_loaded_and_used(tmp_path, monkeypatch):
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path))
    config = AdapterConfig("metalora-cp", 2, condition=ConditionConfig(scope="support"))
    run = RunConfig(data="digits", method="metalora-cp", adapter=config, backbone=BackboneConfig(steps=2, batch=8))
    model = open_suite(run).model
    metalora.attach(model, config)
    path = tmp_path / "adapter.safetensors"
    metalora.save(model, path)
    console = Console(file=io.StringIO(), width=300)
    show_use(run, path, console)
    lines = console.file.getvalue().splitlines()
    assert sum("without training" in line for line in lines) == 3
    assert len(metalora.Condition.load(tmp_path / "class.condition.safetensors")) == 1
