"""Recommendations: the rule for each need, budgets that are kept, and reasons in words."""

from __future__ import annotations

import json
import shlex

import pytest
from tests.support.command import metalora_command
from torch import nn

from metalora.config import AdapterConfig
from metalora.cost import summarise
from metalora.learner.recommendation import RULES, Need, parse_bytes, recommend
from metalora.zoo import build_architecture


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return build_architecture("roberta-base")


@pytest.mark.parametrize(
    ("need", "strategy", "method"),
    [
        (Need(40, 60, 20_000), "meta-trained", "lora"),
        (Need(40, 2000, 20_000), "shared", "metatt-4+1d"),
        (Need(1, 5000), "fitted", "lora"),
        (Need(1, 5000, 40_000), "fitted", "metatt-4d"),
        (Need(1, 5000, 5000), "head", None),
        (Need(1, 40), "head", None),
        (Need(1, 5000, latency=0.5), "meta-trained", "lora"),
    ],
    ids=str,
)
def test_the_rule_of_each_need(need: Need, strategy: str, method: str | None, encoder: nn.Module) -> None:
    chosen = recommend(encoder, "hf:roberta", need)
    assert (chosen.strategy, chosen.method) == (strategy, method)
    assert all(reason.endswith(".") for reason in chosen.reasons)


@pytest.mark.parametrize("budget", [30_000, 100_000, 1_000_000, 100_000_000])
def test_a_fitted_adapter_keeps_its_budget(budget: int, encoder: nn.Module) -> None:
    chosen = recommend(encoder, "hf:roberta", Need(1, 5000, budget))
    assert chosen.method is not None and chosen.task_bytes is not None and chosen.rank is not None
    assert chosen.task_bytes <= 1.1 * budget
    words = shlex.split(chosen.command)
    targets = words[words.index("--targets") + 1]
    config = AdapterConfig(chosen.method, chosen.rank, targets=targets, clip_rank=True)
    assert summarise(encoder, config).bytes == chosen.task_bytes


def test_a_network_without_layers_falls_back_with_a_reason() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    chosen = recommend(network, "mine", Need(40, 2000))
    assert chosen.method == "lora" and "does not fit this network" in chosen.reasons[0]


def test_every_rule_can_apply() -> None:
    needs = [Need(1, 10, latency=1.0), Need(9, 10), Need(9, 900), Need(1, 10), Need(1, 900)]
    first = [next(rule for rule in RULES if rule.applies(need)) for need in needs]
    assert first == list(RULES)


def test_the_command_line() -> None:
    arguments = ["recommend", "--backbone", "minilm", "--tasks", 40, "--examples", 60, "--budget", "20kB"]
    code, out, error = metalora_command(*arguments, "--json")
    assert code == 0, error
    chosen = json.loads(out)
    assert chosen["readout"] == "kernel-ridge" and chosen["task_bytes"] == 20_000 and chosen["shared_bytes"] > 0
    assert "--max-bytes 20000" in chosen["command"]
    code, out, _ = metalora_command(*arguments)
    assert code == 0 and "Many tasks with few examples" in out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backbone minilm --tasks 0 --examples 60", "tasks is 0"),
        ("--backbone minilm --tasks 1 --examples 2", "examples is 2"),
        ("--backbone minilm --tasks 1 --examples 9 --budget lots", "'lots': expected a size such as 20kB"),
        ("--backbone minilm --tasks 1 --examples 9 --latency 0", "latency is 0"),
        ("--backbone tim:resnet18 --tasks 1 --examples 9", "did you mean 'timm'"),
    ],
)
def test_mistakes_are_one_line(arguments: str, message: str) -> None:
    code, out, error = metalora_command("recommend", *arguments.split())
    assert code == 2 and out == "" and message in error and len(error.splitlines()) == 1


def test_sizes() -> None:
    assert [parse_bytes(text) for text in ("1", "1.5kB", "2 MiB")] == [1, 1500, 2 * 1024**2]
