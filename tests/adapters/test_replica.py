"""A replica shares every tensor and nothing else: two threads run a model and its replica, each as if it were alone."""

import copy
import threading

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, merge, replica, unmerge
from support.adapters import randomise
from support.tenants import TENANTS, Served, X

GIVEN = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5)
METHODS = {
    "lora": {},
    "vera": {},
    "film": {"tasks": 3, "condition": ConditionConfig(scope="constant")},
    "metalora-cp": {"condition": GIVEN},
}


def adapted(method="metalora-cp"):
    torch.manual_seed(0)
    layers = (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    model = nn.Sequential(*layers).eval()
    randomise(attach(model, AdapterConfig(method, rank=2, targets=("0", "3"), **METHODS[method])), 0.4)
    return model


def condition_of(adapter, seed=1):
    if adapter.task_keys:
        return adapter.task(seed)
    return adapter.condition(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("method", METHODS)
def test_it_shares_every_tensor_and_gives_the_same(method):
    model = adapted(method)
    other = replica(model)
    states = model.state_dict(keep_vars=True), other.state_dict(keep_vars=True)
    assert states[0].keys() == states[1].keys() and all(states[1][name] is value for name, value in states[0].items())
    assert all(a is b for a, b in zip(model.buffers(), other.buffers(), strict=True))  # frozen factors are in no state
    assert not {*model.modules()} & {*other.modules()}
    condition = {"condition": condition_of(adapter_of(model))} if adapter_of(model).per_example else {}
    assert torch.equal(other(X, **condition), model(X, **condition))
    with torch.no_grad():
        adapter_of(other).learned_by_slot[next(iter(adapter_of(other).learned_by_slot))].mul_(3)
    assert torch.equal(other(X, **condition), model(X, **condition))  # one adapter, trained in either place


def test_the_state_of_one_leaves_the_other_alone():
    model = adapted()
    other, adapter = replica(model), adapter_of(model)
    condition, base = condition_of(adapter), adapted()
    right = model(X, condition=condition)
    with adapter_of(base).disabled():
        frozen = base(X)
    adapter_of(other).fix(condition)
    assert torch.equal(other(X), right)
    with pytest.raises(ValueError, match="comes from a support set"):
        model(X)
    with adapter.disabled():
        assert torch.equal(model(X), frozen) and torch.equal(other(X), right)
    other.train()
    assert not model.training and torch.equal(model(X, condition=condition), right)
    calls = []
    other[0].register_forward_hook(lambda *_: calls.append(1))
    model(X, condition=condition)
    assert not calls


def test_two_threads_run_a_model_and_its_replica():
    served = Served(TENANTS[:8])
    models = [served.model, replica(served.model)]
    problems, entered = [], threading.Barrier(2)

    def work(number):
        model = models[number]
        entered.wait()
        with torch.no_grad():
            for count in range(150):
                tenant = TENANTS[(5 * count + 3 * number) % 8]
                adapter_of(model).fix(served.conditions[tenant])  # a state of the whole model, not of the thread
                if not torch.equal(model(X), served.right[tenant]):
                    problems.append(tenant)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_conditions_go_from_one_to_the_other_and_not_to_a_copy_that_differs():
    model = adapted()
    other = replica(replica(model))
    condition = condition_of(adapter_of(other))
    assert torch.equal(model(X, condition=condition), other(X, condition=condition))
    copied = copy.deepcopy(model)
    randomise(adapter_of(copied), 0.2)
    with pytest.raises(ValueError, match="condition of another adapter"):
        copied(X, condition=condition)


def test_shared_weights_are_not_merged():
    model = adapted("lora")
    merge(model)
    with pytest.raises(ValueError, match="replica: the adapter is merged"):
        replica(model)
    unmerge(model)
    other, right = replica(model), model(X)
    for one in (model, other):
        with pytest.raises(ValueError, match="merge: replicas of the model read the same base weights"):
            merge(one)
    assert torch.equal(model(X), right) and torch.equal(other(X), right)
    merge(copy.deepcopy(model))  # which shares nothing any more
