"""Warm starts: the base's own weights, one gradient."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, detach, load, merge, save
from metalora.fitting.warm_start import atoms_from_gradient, start_from_gradient, start_from_weights


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(12, 12), "v": nn.Linear(12, 12)}) for _ in range(3))
        self.double()

    def forward(self, x):
        for layer in self.layers:
            x = (layer["q"](x) + layer["v"](x).tanh()) / 2
        return x


class Convs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.double()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return x


METHODS = [("lora", 3), ("lotr", 6), ("metatt-4d", 6), ("tenslora-qkv-depth", {"r1": 6, "r2": 6, "r3": 2, "r4": 3})]
each = pytest.mark.parametrize("method, rank", [*METHODS, ("tenslora-qkv-depth-cp", 4)])


@each
def test_the_part_that_the_factors_have_is_taken_from_the_base(method, rank):
    model, x = Net(), torch.randn(5, 12).double()
    plain = copy.deepcopy(model)
    adapter = attach(model, AdapterConfig(method=method, rank=rank, targets=("q", "v"), alpha=2.0))
    report = start_from_weights(model, 3)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
    for path in adapter.targets:
        layer, weight = adapter.layers[path], plain.get_submodule(path).weight.detach()
        torch.testing.assert_close(layer.base.weight + adapter.delta(path), weight, rtol=0, atol=1e-12)
        assert layer.base.weight.norm() < weight.norm()
        u, s, v = torch.linalg.svd(weight)
        leading = u[:, :3] * s[:3] @ v[:3]
        assert report.by_target()[path] == pytest.approx(
            float((leading - adapter.delta(path).detach()).norm() / leading.norm()), abs=1e-6
        )
    assert (report.error < 1e-7) == (method == "lora")  # a LoRA of the rank is PiSSA itself
    model(x).square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in adapter.learned.values())


def test_a_reduced_base_is_another_base_until_it_is_reduced_in_the_same_way(tmp_path):
    base, x = Net(), torch.randn(5, 12).double()
    config = AdapterConfig(method="lotr", rank=4, targets=("q", "v"))
    trained, fresh = copy.deepcopy(base), copy.deepcopy(base)
    adapter = attach(trained, config)
    start_from_weights(trained, 3)
    adapter.learned["C"].data.mul_(1.5)
    save(trained, tmp_path / "file")
    with pytest.raises(ValueError, match="fingerprints differ"):
        load(fresh, tmp_path / "file")
    attach(fresh, config)
    start_from_weights(fresh, 3)
    detach(fresh)
    load(fresh, tmp_path / "file")
    torch.testing.assert_close(fresh(x), trained(x), rtol=0, atol=0)


@each
def test_a_gradient_start_is_a_small_step_downhill(method, rank):
    model, x = Net(), torch.randn(40, 12).double()
    goal = torch.randn(40, 12).double()
    adapter = attach(model, AdapterConfig(method=method, rank=rank, targets=("q", "v")))

    def loss():
        return (model(x) - goal).square().mean()

    with adapter.disabled():
        before = float(loss().detach())
    report = start_from_gradient(model, loss, 3, size=1e-2)
    assert float(loss().detach()) < before
    size = sum(float(adapter.delta(path).detach().square().sum()) for path in adapter.targets) ** 0.5
    weights = sum(float(layer.base.weight.square().sum()) for layer in adapter.layers.values()) ** 0.5
    assert 0.3e-2 < size / weights <= 1e-2 * (1 + 1e-9)
    assert (report.error < 1e-7) == (method == "lora")
    assert not any(layer.base.weight.requires_grad for layer in adapter.layers.values())


def test_a_lora_starts_as_the_leading_part_of_the_gradient():
    model, x = Convs(), torch.randn(6, 4, 5, 5).double()
    plain = copy.deepcopy(model)
    adapter = attach(model, AdapterConfig(method="lora", rank=2, targets=("layers.0", "layers.1")))
    start_from_gradient(model, lambda: model(x).square().mean(), 2, size=0.05)
    plain(x).square().mean().backward()
    leading = []
    for layer in plain.layers:
        u, s, v = torch.linalg.svd(-layer.weight.grad.flatten(1), full_matrices=False)
        leading.append((u[:, :2] * s[:2] @ v[:2]).reshape(4, 4, 3, 3))
    weights = sum(float(layer.weight.detach().square().sum()) for layer in plain.layers) ** 0.5
    factor = 0.05 * weights / sum(float(one.square().sum()) for one in leading) ** 0.5
    for k, one in enumerate(leading):
        torch.testing.assert_close(adapter.delta(f"layers.{k}").detach(), factor * one, rtol=1e-9, atol=1e-12)


def test_atoms_of_the_gradient():
    """TensorPEFT: best rank-one parts of minus the stacked gradient, one after another; the weights are zero."""
    model, x = Net(), torch.randn(40, 12).double()
    goal, plain = torch.randn(40, 12).double(), copy.deepcopy(model)
    adapter = attach(model, AdapterConfig(method="tensorpeft", rank=5, targets=("q", "v")))
    base = model(x)

    def loss(net):
        return (net(x) - goal).square().mean()

    report = atoms_from_gradient(model, lambda: loss(model), 12)
    assert torch.equal(model(x), base) and 0 < report.error < 1
    loss(plain).backward()
    rest = -torch.stack([torch.stack([layer[role].weight.grad.T for role in "qv"]) for layer in plain.layers])
    atoms = [adapter.factors[name].detach() for name in ("uL", "uP", "uI", "uO")]
    for k in range(5):
        columns = [atom[:, k] for atom in atoms]
        for atom in columns:
            assert float(atom.norm()) == pytest.approx(1, abs=1e-9)
        weight = torch.einsum("lpio,l,p,i,o->", rest, *columns)
        for letter, axes in zip("lpio", ("pio", "lio", "lpo", "lpi"), strict=True):  # a fixed point, as far as it went
            others = [atom for one, atom in zip("lpio", columns, strict=True) if one != letter]
            seen = torch.einsum(f"lpio,{','.join(axes)}->{letter}", rest, *others)
            torch.testing.assert_close(seen, weight * columns["lpio".index(letter)], rtol=0, atol=1e-2 * float(weight))
        assert weight > 0
        rest = rest - weight * torch.einsum("l,p,i,o->lpio", *columns)
    loss(model).backward()
    assert adapter.factors["a"].grad.lt(0).all()  # downhill along every atom
    with torch.no_grad():
        adapter.factors["a"].sub_(0.1 * adapter.factors["a"].grad)
    assert loss(model) < loss(plain)


def test_adaloras_vectors_are_those_of_the_gradient():
    model, x = Net(), torch.randn(6, 12).double()
    plain = copy.deepcopy(model)
    adapter = attach(model, AdapterConfig(method="adalora", rank=3, targets=("q",)))
    atoms_from_gradient(model, lambda: model(x).square().mean(), 12)
    plain(x).square().mean().backward()
    for k, layer in enumerate(plain.layers):
        u, s, v = torch.linalg.svd(-layer["q"].weight.grad)
        p, q = (adapter.factors[f"layers.{k}.q.{name}"].detach() for name in "PQ")
        torch.testing.assert_close((v[:3] @ p).abs(), torch.eye(3).double(), rtol=0, atol=1e-3)
        torch.testing.assert_close((u[:, :3].T @ q.T).abs(), torch.eye(3).double(), rtol=0, atol=1e-3)


def test_atoms_need_weights_that_start_at_zero():
    for method in ("tenslora-qkv-depth-cp", "metatt-4d", "lora"):
        model = Net()
        attach(model, AdapterConfig(method=method, rank=2, targets=("q", "v")))
        with pytest.raises(ValueError, match=f"atoms_from_gradient: '{method}' is not a CP whose columns have weights"):
            atoms_from_gradient(model, lambda model=model: model(torch.ones(1, 12).double()).sum(), 2)


def test_every_task_starts_alike():
    model, x = Net(), torch.randn(4, 12).double()
    adapter = attach(model, AdapterConfig(method="metatt-4+1d", rank=4, tasks=2, targets=("q", "v")))
    start_from_gradient(model, lambda: model(x, task_ids=0).square().mean(), 2)
    for path in adapter.targets:
        one, other = (adapter.delta(path, adapter.task(k)).detach() for k in range(2))
        assert one.norm() > 0
        torch.testing.assert_close(one, other)


def test_refusals():
    model, x = Net(), torch.randn(4, 12).double()
    with pytest.raises(ValueError, match="start_from_weights: Net has no adapter"):
        start_from_weights(model, 2)
    attach(model, AdapterConfig(method="metatt-4+1d", rank=2, tasks=2, targets=("q",)))
    with pytest.raises(ValueError, match="differs by example or task"):
        start_from_weights(model, 2)
    with pytest.raises(ValueError, match="rank is 0, expected at least 1"):
        start_from_gradient(model, lambda: model(x).sum(), 0)
    with pytest.raises(ValueError, match="no gradient at any target"):
        start_from_gradient(model, lambda: 0 * model(x, task_ids=0).sum(), 2)
    detach(model)
    attach(model, AdapterConfig(method="loha", rank=2, targets=("q",)))
    with pytest.raises(ValueError, match="only a chain, a tree"):
        start_from_gradient(model, lambda: model(x).sum(), 2)
    detach(model)
    attach(model, AdapterConfig(method="lotr", rank=2, targets=("q",)))
    merge(model)
    with pytest.raises(ValueError, match="merged; unmerge it first"):
        start_from_weights(model, 2)


def test_one_weight_of_two_targets_is_refused_before_anything_changes():
    model = Net()
    model.layers[1]["q"].weight = model.layers[0]["q"].weight
    adapter = attach(model, AdapterConfig(method="lotr", rank=2, targets=("q",)))
    before = {key: value.clone() for key, value in adapter.learned.items()}
    with pytest.raises(ValueError, match="one weight in common"):
        start_from_weights(model, 2)
    assert all(torch.equal(value, before[key]) for key, value in adapter.learned.items())
