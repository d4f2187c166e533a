"""`metalora inspect PATH` on files and folders that need no learner."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.support.command import metalora_command
from torch import nn

import metalora
from metalora import AdapterConfig
from metalora.cli.inspection import inspect_path
from metalora.config import ConditionConfig


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 6))


def test_an_adapter_file_and_its_condition(tmp_path: Path) -> None:
    config = AdapterConfig("metalora-cp", 2, targets=("0", "2"), condition=ConditionConfig(hidden=4))
    adapter = metalora.attach(network(), config, example=torch.rand(2, 8))
    adapter.save(tmp_path / "adapter.safetensors")
    adapter.condition(torch.rand(3, 8)).save(tmp_path / "condition.safetensors")
    finding = inspect_path(tmp_path / "adapter.safetensors")
    assert finding.kind == "adapter file"
    assert "metalora-cp, rank 2" in finding.sentences[0] and "generated from a condition" in finding.sentences[2]
    assert "3 condition(s)" in inspect_path(tmp_path / "condition.safetensors").sentences[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "It is static: the same update for every input."),
        (
            {"tasks": 3},
            "It has an update for each of its 3 tasks: merging takes --task, exporting --task or --all-tasks.",
        ),
        (
            {"tasks": 3, "generated": ("G2",), "condition": ConditionConfig(hidden=4)},
            "Its factors are generated from a condition, for each of its 3 tasks: "
            "merging or exporting takes a condition file.",
        ),
    ],
)
def test_an_adapter_file_says_what_its_update_depends_on(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    config = AdapterConfig("metatt-4+1d", 2, targets=("0", "1"), **settings)
    adapter = metalora.attach(nn.Sequential(OrderedDict(layers=layers)), config, example=torch.rand(2, 8))
    adapter.save(tmp_path / "adapter.safetensors")
    assert inspect_path(tmp_path / "adapter.safetensors").sentences[2] == sentence


def test_a_folder_of_peft(tmp_path: Path) -> None:
    adapter = metalora.attach(network(), AdapterConfig("lora", 2, targets=("0", "2")))
    adapter.export_lora(tmp_path / "lora")
    finding = inspect_path(tmp_path / "lora")
    assert finding.kind == "LoRA folder" and "2 targets (rank 2 at 2)" in finding.sentences[0]


def test_plain_weights_and_loras_of_others(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3, 4)}, tmp_path / "model.safetensors")
    assert "1 tensors, 12 numbers" in inspect_path(tmp_path / "model.safetensors").sentences[0]
    save_file({"a.lora_down.weight": torch.zeros(3, 4)}, tmp_path / "kohya.safetensors")
    assert inspect_path(tmp_path / "kohya.safetensors").kind == "LoRA file"


def test_rows_of_results(tmp_path: Path) -> None:
    row = {"key": "a", "suite": "cue", "seed": 3, "config": {"method": "lora"}, "results": {}}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "seed": 4}) + "\n")
    code, out, _ = metalora_command("inspect", path)
    assert code == 0 and "2 rows of results: cue 2." in out and "Seeds: 3, 4." in out
    path.write_text(json.dumps(row) + "\n" + '{"key"')
    code, out, error = metalora_command("inspect", path)
    assert code == 2 and out == "" and "line 2 is not a complete row" in error


def test_a_table_says_which_columns_it_would_ignore(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "mood": n % 2, "id": n, "always": 1} for n in range(8)]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    finding = inspect_path(path)
    text = "\n".join(finding.sentences)
    assert "8 texts" in text and "labels 'mood': 2 classes (0 4, 1 4)" in text
    assert "ignored 'id': it has 8 different values in 8 rows" in text and "ignored 'always'" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "there is no such file or folder"),
        ("none.safetensors", None, "cannot be read"),
        ("cut.safetensors", b"abc", "cut.safetensors"),
        ("empty.csv", b"", "empty.csv"),
        ("empty.png", b"", "empty.png"),
        ("model.bin", b"abc", "the ending '.bin' is unknown"),
    ],
)
def test_what_cannot_be_read_is_one_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, error = metalora_command("inspect", tmp_path / name)
    assert code == 2 and out == "" and message in error and len(error.splitlines()) == 1
