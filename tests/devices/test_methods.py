"""Every method on a second device: the numbers of the CPU, no wait in forward and backward, merging and files."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, detach, load, merge, save, unmerge
from metalora.adapters.attach import adapter_of
from metalora.adapters.conditioning.condition_table import ConditionTable
from metalora.adapters.conditioning.extractor import ImageConversion
from metalora.methods.registry import METHODS
from support.adapters import assert_close, randomise
from support.cases import CASES, FEATURES
from support.layers import LAYERS
from support.second_device import CARD, counting_waits

LAYER = LAYERS["linear"]


class Pair:
    """An adapted model on the CPU, and the same one attached on the device.

    Attributes:
        models, adapters: Of the CPU and of the device.
        x: An input on the CPU.
    """

    def __init__(self, case):
        base = LAYER.base()
        self.case, self.x = case, LAYER.inputs("few")
        self.features = torch.randn(len(self.x), FEATURES, dtype=self.x.dtype)
        self.models = [copy.deepcopy(base), base.to(CARD)]
        self.adapters = [attach(model, case.config()) for model in self.models]
        randomise(self.adapters[0])
        self.adapters[1].load_state_dict(self.adapters[0].state_dict())

    def condition(self, number):
        """A condition of each example, on the CPU (0) or on the device (1); None for a method without one."""
        device = ("cpu", CARD)[number]
        if self.case.tasks > 1:
            return self.adapters[number].task((torch.arange(len(self.x)) % self.case.tasks).to(device))
        return self.adapters[number].condition(self.features.to(device)) if self.case.generated else None

    def output(self, number, condition):
        x = self.x.to(("cpu", CARD)[number])
        return self.models[number](x) if condition is None else self.models[number](x, condition=condition)


def cases():
    """All cases; those that are not the first with or without a condition of their method are slow."""
    seen = set()
    for name, case in CASES.items():
        kind = case.method, case.per_example
        yield pytest.param(case, id=name, marks=[pytest.mark.slow] * (kind in seen))
        seen.add(kind)


@pytest.mark.parametrize("case", list(cases()))
def test_the_numbers_are_those_of_the_cpu_and_nothing_waits(case):
    pair = Pair(case)
    values = [*pair.models[1].parameters(), *pair.models[1].buffers()]
    assert {value.device.type for value in values} == {CARD}
    condition, x = pair.condition(1), pair.x.to(CARD)
    with counting_waits() as waits:
        output = pair.models[1](x) if condition is None else pair.models[1](x, condition=condition)
        output.square().mean().backward()
    assert not waits, waits
    expected = pair.output(0, pair.condition(0))
    expected.square().mean().backward()
    assert_close(output.cpu(), expected)
    for key, factor in pair.adapters[0].learned.items():
        gradient = pair.adapters[1].learned[key].grad
        assert_close(gradient.cpu(), factor.grad, name=key)


def first_case(method):
    return next(case for case in CASES.values() if case.method == method)


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].form != "bottleneck"])
@torch.no_grad()
def test_merging_and_files(method, tmp_path):
    pair = Pair(first_case(method))
    x = pair.x.to(CARD)
    weight = pair.models[1][0].base.weight.clone()
    outputs = [model(x) for model in pair.models[1:]]
    merge(pair.models[1])
    assert_close(pair.models[1](x), outputs[0])
    unmerge(pair.models[1])
    assert torch.equal(adapter_of(pair.models[1]).layers["0"].base.weight, weight)
    save(pair.models[1], tmp_path / "adapter")
    detach(pair.models[1])
    loaded = load(pair.models[1], tmp_path / "adapter")
    assert {value.device.type for value in loaded.parameters()} <= {CARD}
    assert torch.equal(pair.models[1](x), outputs[0])


@pytest.mark.parametrize("method", ["metalora-cp", "metalora-tr"])
def test_a_batch_of_tenants_from_a_table_waits_for_the_check_of_features_alone(method):
    given = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=FEATURES)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).to(CARD)
    adapter = attach(model, AdapterConfig(method, rank=2, targets=("0", "2"), condition=given))
    randomise(adapter)
    supports = [torch.randn(4, FEATURES, device=CARD) for _ in range(3)]
    with counting_waits() as waits:
        conditions = [adapter.condition(support) for support in supports]
    assert len(waits) == len(supports) and all("mapping_net.py" in wait for wait in waits)
    table = ConditionTable.of([condition.detach() for condition in conditions])
    order, rows, x = [2, 0, 1], [0, 2, 2, 1], torch.randn(4, 6, device=CARD)
    with torch.no_grad(), counting_waits() as waits:
        with adapter.using(table.take(order), rows=rows):
            output = model(x)
    assert not waits, waits
    for row, i in enumerate(rows):
        alone = model(x[row : row + 1], condition=conditions[order[i]])
        assert_close(output[row : row + 1], alone.detach(), 1e-5)
    with torch.no_grad(), adapter.using(table.take(order), rows=torch.tensor(rows, device=CARD)):
        assert torch.equal(model(x), output)


def test_task_numbers_that_the_cpu_knows_wait_for_nothing():
    model = nn.Sequential(nn.Linear(6, 6)).to(CARD)
    adapter = attach(model, AdapterConfig("metatt-4+1d", rank=2, targets="0", tasks=3))
    randomise(adapter)
    x = torch.randn(3, 6, device=CARD)
    with torch.no_grad(), counting_waits() as waits:
        output = model(x, task_ids=[2, 0, 1])
    assert not waits, waits
    assert_close(model(x, task_ids=torch.tensor([2, 0, 1], device=CARD)).detach(), output, 1e-6)


@pytest.mark.parametrize("source", [{}, {"source": "stem", "stem": "0"}], ids=("stages", "stem"))
def test_a_condition_of_each_input_waits_for_the_check_of_features_alone(source):
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))).to(CARD)
    condition = ConditionConfig(scope="sample", **source)
    config = AdapterConfig("metalora-cp", rank=2, targets="2", condition=condition)
    x = torch.randn(5, 6, device=CARD)
    adapter = attach(model, config, example=x)
    randomise(adapter)
    with counting_waits() as waits:
        model(x).sum().backward()
    assert len(waits) == 1 and "mapping_net.py" in waits[0], waits


def test_images_are_converted_where_they_are():
    images = torch.rand(2, 3, 4, 4)
    convert = ImageConversion(scale=(2.0, 1.0, 0.5), shift=(-1.0, 0.0, 1.0), size=(6, 6))
    there = images.to(CARD)
    with counting_waits() as waits:
        converted = convert(there)
    assert not waits, waits
    assert_close(converted.cpu(), convert(images), 1e-6)
