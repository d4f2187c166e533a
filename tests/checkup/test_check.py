"""`metalora.check` finds what is wrong at a target, says what it does not know, and leaves the model as it is."""

import json

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import metalora
import metalora.peft
from metalora import AdapterConfig
from support.command import metalora_command

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=32)


class ReadsItsWeight(nn.Module):
    """A layer that a forward calls, and two whose weights it reads: one by the layer, one behind its back."""

    def __init__(self, behind_its_back):
        super().__init__()
        self.called, self.read = nn.Linear(6, 6), nn.Linear(6, 6)
        self.weights = (self.read.weight,) if behind_its_back else None

    def forward(self, x):
        x = self.called(x).relu()
        return x @ (self.read.weight if self.weights is None else self.weights[0])


class Branches(nn.Module):
    """A layer that is never called, one whose output is not used, and one behind which there is no gradient."""

    def __init__(self):
        super().__init__()
        self.used, self.idle, self.unused, self.rounded = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        x = self.rounded(x).mul(50).round() + x
        self.unused(x)
        return self.used(x)


class Tied(nn.Module):
    """Two layers with one weight, of which one is called."""

    def __init__(self):
        super().__init__()
        self.called, self.twin = nn.Linear(6, 6), nn.Linear(6, 6)
        self.twin.weight = self.called.weight

    def forward(self, x):
        return self.called(x)


def answers(report, question):
    return {target.path: getattr(target, question).state for target in report.targets}


CONFIGS = pytest.mark.parametrize(
    "config",
    (
        AdapterConfig("lora", 2, targets="query,value"),
        AdapterConfig("metatt-4d", 2, targets="query,value"),
        AdapterConfig("metalora-cp", 2, targets="query,value"),
        AdapterConfig("metatt-4+1d", 2, tasks=3, targets="query,value"),
        AdapterConfig("dora", 2, targets="query,value"),
        metalora.peft.TensorNetworkConfig(method="lora", r=2, target_modules=["query", "value"]),
        metalora.peft.TensorNetworkConfig(method="metatt-4d", r=2, target_modules=["query", "value"]),
    ),
    ids=lambda config: f"{config.method}-{type(config).__name__}",
)


@CONFIGS
def test_every_target_of_a_bert_is_right_and_the_model_is_unchanged(config):
    model = BertModel(BertConfig(**SIZES)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    report = metalora.check(model, config)
    assert report.faults == [] and len(report.targets) == 4 and report.precision == "float64"
    for question in ("live", "trained", "mergeable", "exportable"):
        assert {*answers(report, question).values()} == {"yes"}
    assert {report.forward.state, report.gradients.state, report.merged.state, report.exported.state} == {"yes"}
    after = model.state_dict()
    assert [*after] == [*before] and all(torch.equal(after[name], before[name]) for name in before)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_target_whose_weight_is_read_behind_its_back_is_found():
    report = metalora.check(ReadsItsWeight(behind_its_back=True), AdapterConfig("lora", 2, targets="called,read"))
    assert answers(report, "live") == {"called": "yes", "read": "no"}
    assert "the model reads its weight, and the adapter has no effect" in report.faults[0]


def test_a_layer_that_did_not_run_is_not_live_because_its_tied_twin_is():
    report = metalora.check(Tied(), AdapterConfig("lora", 2, targets="called,twin"))
    assert report.faults == [] and answers(report, "live") == {"called": "yes", "twin": "unknown"}


def test_a_crash_of_the_adapted_model_is_a_fault(monkeypatch):
    def crash(layer, x):
        raise AttributeError("no such attribute")

    monkeypatch.setattr(metalora.adapters.layers.linear.AdaptedLinear, "forward", crash)
    report = metalora.check(nn.Sequential(nn.Linear(4, 4)), AdapterConfig("lora", 2, targets="0"))
    assert report.faults == ["forward: AttributeError: no such attribute"]


def test_a_wrong_merge_is_a_fault_of_its_target(monkeypatch):
    right = metalora.adapters.layers.mergeable.MergeableLayer.merge_weight

    def wrong(layer, merged):
        right(layer, merged + (layer.target.path == "1") * 0.1)

    monkeypatch.setattr(metalora.adapters.layers.mergeable.MergeableLayer, "merge_weight", wrong)
    report = metalora.check(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), AdapterConfig("lora", 2, targets="0,1"))
    assert report.merged.state == "no" and answers(report, "mergeable") == {"0": "yes", "1": "no"}


def test_what_does_not_matter_to_the_output_is_not_known():
    report = metalora.check(Branches(), AdapterConfig("lora", 2, targets="used,idle,unused,rounded"))
    assert report.faults == []
    assert answers(report, "live") == {"used": "yes", "idle": "unknown", "unused": "unknown", "rounded": "yes"}
    assert answers(report, "trained") == {"used": "yes", "idle": "unknown", "unused": "unknown", "rounded": "unknown"}
    reasons = {target.path: target.live.reason for target in report.targets}
    assert reasons["idle"] == "did not run in this forward" and "does not depend on" in reasons["unused"]


def test_what_cannot_be_merged_or_exported_says_why_for_each_target():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    report = metalora.check(model, AdapterConfig("lora", 2, targets="q_proj,embed_tokens"))
    states = answers(report, "mergeable")
    assert states.pop("model.embed_tokens") == "refused" and {*states.values()} == {"yes"}
    assert report.merged.state == "refused" and "tied" in report.merged.reason
    assert answers(report, "exportable")["model.embed_tokens"] == "refused"


def test_a_large_model_and_one_without_inputs_are_not_run():
    model = BertModel(BertConfig(**SIZES)).to("meta")
    report = metalora.check(model, AdapterConfig("lora", 2, targets="query"))
    assert report.precision == "not run" and len(report.targets) == 2
    assert {*answers(report, "exportable").values()} == {"yes"} and {*answers(report, "live").values()} == {"unknown"}
    small = metalora.check(nn.Sequential(nn.Linear(4, 4)), AdapterConfig("lora", 2, targets="0"), largest=3)
    assert "the model is large" in small.inputs


def test_an_example_is_used():
    class TakesTwo(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, factor):
            return self.layer(x) * factor

    config = AdapterConfig("lora", 2, targets="layer")
    assert "it does not run on" in metalora.check(TakesTwo(), config).inputs
    report = metalora.check(TakesTwo(), config, example={"x": torch.rand(3, 4), "factor": torch.rand(3, 1)})
    assert report.faults == [] and report.inputs == "x (3, 4), factor (3, 1)"
    assert answers(report, "live") == {"layer": "yes"}


def test_the_command_prints_a_line_for_each_target():
    arguments = ("doctor", "timm:resnet10t", "--method", "lora", "--rank", "2", "--targets", "layer1.*.conv*")
    code, out, _ = metalora_command(*arguments)
    assert code == 0 and "layer1.0.conv2" in out and "exported: yes" in out
    code, out, _ = metalora_command(*arguments, "--peft", "--json")
    report = json.loads(out)
    assert code == 0 and report["faults"] == [] and [t["path"] for t in report["targets"]] == [
        "layer1.0.conv1", "layer1.0.conv2",
    ]  # fmt: skip


def test_the_command_refuses_what_attach_refuses():
    code, _, error = metalora_command("doctor", "timm:resnet10t", "--method", "lora", "--targets", "nothing")
    assert code == 2 and "matches no module" in error


class WritesInPlace(nn.Module):
    """A model whose own backward fails: it writes into what a product needs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        y = self.layer(x)
        z = y.exp()
        y += z
        z.mul_(2)
        return y * z


def test_a_backward_that_the_model_cannot_run_itself_is_no_fault_of_the_adapter():
    report = metalora.check(WritesInPlace(), AdapterConfig("lora", 2, targets="layer"))
    assert report.faults == [] and report.gradients.state == "unknown"
    assert "with or without an adapter" in report.gradients.reason and answers(report, "live") == {"layer": "yes"}
