"""What `print` and a notebook show of an adapter, a condition, a learner and a task: ten true lines at most."""

import numpy as np
import pytest
import torch
from torch import nn

import metalora
from metalora.learner import MetaLearner, Report

MOST_LINES = 10


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))  # 72 and 18 numbers

    def forward(self, x):
        return self.body(x)


def attached(method="lora", **settings):
    """An adapter of the first layer of a network of 90 numbers."""
    return metalora.attach(Body(), metalora.AdapterConfig(method, rank=2, targets="body.0", **settings))


def generated():
    condition = metalora.ConditionConfig(source="tensor", feature_size=5)
    return attached("metalora-cp", condition=condition)


def learner():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
    return MetaLearner(network, adapter=metalora.AdapterConfig("lora", rank=2, targets="all"), readout="lda")


def task(names=("<b>ripe</b>", "green")):
    inputs = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
    return learner().adapt(inputs, [*names] * 10)


def condition():
    return generated().condition(torch.zeros(3, 5))


SHOWN = {
    "adapter": (attached, ("method: lora", "rank: 2", "targets: 1 (body.0)", "condition: none (static)", "merged: no")),
    "generated adapter": (generated, ("method: metalora-cp", "from tensor, sample")),
    "condition": (condition, ("examples: 3", "float32 on cpu", "features: 5", "made by: ")),
    "learner": (learner, ("network: Sequential, arrays", "adapter: lora, rank 2", "readout: lda", "none (static)")),
    "task": (task, ("labels: 2 classes", "green", "lda of 20 examples", "network: Sequential", "adapter: lora")),
}


@pytest.mark.parametrize("make, parts", SHOWN.values(), ids=SHOWN)
def test_ten_lines_say_what_it_is(make, parts):
    thing = make()
    text = repr(thing)
    assert text.startswith(f"{type(thing).__name__}(\n") and len(text.splitlines()) <= MOST_LINES
    assert [part for part in parts if part not in text] == []
    assert thing._repr_html_().count("<tr>") == len(thing.description())


def test_the_share_is_that_of_the_network_without_its_adapters():
    first = attached()
    assert first.description()["parameters"] == "32, 35.56 % of the 90 of the frozen network"
    head = metalora.AdapterConfig("lora", rank=1, targets="body.2")
    metalora.detach(first.model)
    assert metalora.attach(first.model, head).description()["parameters"].startswith("10, 11.11 % of the 90 ")


def test_a_generated_adapter_counts_its_mapping_net_as_its_own():
    adapter = generated()
    assert adapter.description()["parameters"].startswith(f"{adapter.num_params():,}, ")
    assert adapter.description()["parameters"].endswith(" of the 90 of the frozen network")


def test_a_label_cannot_put_a_tag_into_a_notebook():
    html = task()._repr_html_()
    assert "&lt;b&gt;ripe&lt;/b&gt;" in html and "<b>" not in html


def test_the_size_of_a_task_is_that_of_its_numbers_and_long_names_are_cut():
    shown = task(("x" * 1000, "green"))
    size = sum(tensor.nbytes for tensor in shown.readout.tensors().values())
    assert f"{size:,} bytes" in repr(shown) and len(repr(shown)) < 1000


def test_a_condition_says_which_adapter_made_it(tmp_path):
    adapter = generated()
    made = adapter.condition(torch.zeros(3, 5))
    assert made.description()["made by"] == "a metalora-cp adapter"
    made.save(tmp_path / "c.safetensors")
    assert str(tmp_path) in repr(metalora.Condition.load(tmp_path / "c.safetensors"))
    by_hand = metalora.Condition({"C": torch.ones(3, 2)}, torch.zeros(3, 0), torch.tensor(0.0))
    assert "made by: no adapter" in repr(by_hand) and "numbers: 2 for each example" in repr(by_hand)


def test_a_learner_with_a_report_shows_its_verdict():
    trained = learner()
    trained.report_ = Report((), 60, None, "no inputs are kept")
    assert f"report: {trained.report_.verdict}\n)" in repr(trained) and "no inputs are kept" in repr(trained)
