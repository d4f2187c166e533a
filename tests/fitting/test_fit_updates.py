"""Factors fitted to low-rank updates: what a network itself made is found again, wherever its targets read it."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach
from metalora.fitting.fit_updates import fit_updates
from metalora.fitting.updates import LowRankUpdate


class Net(nn.Module):
    """Layers of named weights, (out, in) each."""

    def __init__(self, layers=3, **shapes):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(i, o) for name, (o, i) in shapes.items()}) for _ in range(layers)
        )
        self.double()


SQUARE = {"query": (12, 12), "value": (12, 12)}
TUCKER = {"r1": 3, "r2": 3, "r3": 2}
CASES = {
    "matrix": ("lora", 3, SQUARE, {}),
    "chain": ("metatt-4d", 3, SQUARE, {}),
    "chain in another order": ("metatt-4d", 3, SQUARE, {"order": ("in", "proj", "layer", "out")}),
    "chain with heads": ("metatt-5d", 3, SQUARE, {}),
    "tasks": ("metatt-4+1d", 3, SQUARE, {"tasks": 4}),
    "tasks and heads": ("metatt-6d", 3, SQUARE, {"tasks": 3}),
    "flattened coordinates": ("lotr", 3, SQUARE, {}),
    "Tucker of each projection": ("tenslora-depth", TUCKER, SQUARE, {}),
    "Tucker of each layer": ("tenslora-att-qkv", {"r1": 3, "r2": 3, "r3": 2, "r4": 2}, SQUARE, {}),
    "Tucker with interleaved heads": ("tenslora-att", TUCKER, SQUARE, {"order": "tenslora"}),
    "CP": ("tenslora-qkv-depth-cp", 3, SQUARE, {}),
    "CP with heads": ("lorta", 3, SQUARE, {}),
    "slices of a matrix": ("fact-tt", 3, SQUARE, {}),
    "fused": ("metatt-4d", 3, {"qkv": (36, 12), "proj": (12, 12)}, {}),
    "slices of the largest": ("lotr", 3, {"query": (12, 12), "key": (9, 12)}, {"widths": "max_slice"}),
    "chunks of out": ("metatt-4d", 3, {"query": (12, 12), "fc1": (24, 12)}, {"widths": "chunk"}),
    "chunks of in": ("metatt-4d", 3, {"query": (12, 12), "fc2": (12, 24)}, {"widths": "chunk"}),
    "a long axis": ("metatt-4d", 3, {"query": (50, 60), "value": (50, 60)}, {}),
    "long heads": ("metatt-5d", 3, {"query": (120, 60), "value": (120, 60)}, {"head_dim": 40}),
    "long axes, unequal": ("metatt-4d", 3, {"query": (50, 60), "fc1": (70, 60)}, {}),
}


def attach_fit_case(case, **changes):
    method, rank, shapes, options = CASES[case]
    config = dict(method=method, rank=rank, alpha=3.0, head_dim=4, targets=tuple(shapes)) | options | changes
    return attach(Net(**shapes), AdapterConfig(**config))


@torch.no_grad()
def dense(adapter, path, task):
    return adapter.delta(path, adapter.task(task) if adapter.config.tasks > 1 else None)


def pairs_of(adapter):
    """Every update as a pair, by the SVD of the dense one."""
    found = []
    for task in range(adapter.config.tasks):
        found.append({})
        for path in adapter.targets:
            u, s, v = torch.linalg.svd(dense(adapter, path, task), full_matrices=False)
            rank = int((s > 1e-12 * s[0]).sum())
            found[-1][path] = LowRankUpdate(v[:rank], u[:, :rank] * s[:rank])
    return found


def randomise(adapter, seed):
    drawn = torch.Generator().manual_seed(seed)
    for value in adapter.learned.values():
        value.data.normal_(generator=drawn)


@pytest.mark.parametrize("case", CASES)
def test_what_the_network_made_is_found_again(case):
    adapter = attach_fit_case(case)
    randomise(adapter, 1)
    updates = pairs_of(adapter)
    randomise(adapter, 2)
    before = dense(adapter, next(iter(adapter.targets)), 0)
    report = fit_updates(adapter, updates)
    free = any(word in case for word in ("fused", "chunks", "slices of the largest", "unequal"))
    assert report.error < (1e-4 if free else 1e-6)
    for task, pairs in enumerate(updates):
        for path, pair in pairs.items():
            whole = pair.up @ pair.down
            assert (dense(adapter, path, task) - whole).norm() < (1e-3 if free else 1e-6) * whole.norm()
    assert (dense(adapter, next(iter(adapter.targets)), 0) - before).norm() > 0.1
    assert len(report.by_task()) == adapter.config.tasks and set(report.by_target()) == set(adapter.targets)


@pytest.mark.parametrize("case", ["chain", "flattened coordinates", "Tucker of each projection", "CP"])
def test_ranks_above_that_of_the_updates_are_free_to_learn(case):
    adapter, larger = attach_fit_case(case), 6
    randomise(adapter, 1)
    updates = pairs_of(adapter)
    rank = {"r1": 6, "r2": 6, "r3": 3} if "Tucker" in case else larger
    other = attach_fit_case(case, rank=rank)
    assert fit_updates(other, updates).error < 1e-6
    x = torch.randn(7, 12, dtype=torch.float64)
    sum(layer(x).square().sum() for layer in other.layers.values()).backward()
    for bond in other.method.network.bonds:  # every new entry has a gradient in some factor of its bond
        axes = [(o.modes.index(bond), k) for k, o in other.layout.params.items() if bond in o.modes]
        for entry in range(other.layout.params[axes[0][1]].shape[axes[0][0]]):
            assert any(other.learned[key].grad.select(axis, entry).any() for axis, key in axes)


@pytest.mark.parametrize("method, zero_at_first", [("metatt-4d", True), ("lotr", True), ("tt-nonzero", False)])
def test_updates_of_zero_leave_the_base_and_something_to_learn(method, zero_at_first):
    case = "chain" if method != "lotr" else "flattened coordinates"
    adapter = attach_fit_case(case)
    if not zero_at_first:
        randomise(adapter, 3)
    assert fit_updates(adapter, [{}]).error == 0
    assert not any(dense(adapter, path, 0).any() for path in adapter.targets)
    x = torch.randn(7, 12, dtype=torch.float64)
    sum((layer(x) ** 2).sum() for layer in adapter.layers.values()).backward()
    assert any(value.grad is not None and value.grad.any() for value in adapter.learned.values())


def test_refusals_change_nothing():
    adapter = attach_fit_case("tasks")
    before = {key: value.clone() for key, value in adapter.learned.items()}
    pair = LowRankUpdate(torch.zeros(1, 12), torch.zeros(12, 1))
    with pytest.raises(ValueError, match="2 sets of updates for an adapter of 4 tasks"):
        fit_updates(adapter, [{}, {}])
    with pytest.raises(ValueError, match="no target 'layers.0.qeury'; did you mean 'layers.0.query'"):
        fit_updates(adapter, [{"layers.0.qeury": pair}, {}, {}, {}])
    with pytest.raises(ValueError, match=r"shapes \(1, 12\) and \(12, 2\), expected \(rank, 12\) and \(12, rank\)"):
        fit_updates(adapter, [{"layers.0.query": LowRankUpdate(pair.down, torch.zeros(12, 2))}, {}, {}, {}])
    assert all(torch.equal(value, before[key]) for key, value in adapter.learned.items())
    digits = attach(Net(**SQUARE), AdapterConfig(method="tt-lora", rank=2, targets=("query",)))
    with pytest.raises(ValueError, match="folds 'in' into digits"):
        fit_updates(digits, [{}])
    sums = attach(Net(**SQUARE), AdapterConfig(method="loha", rank=2, targets=("query",)))
    with pytest.raises(ValueError, match="'loha': only a chain, .* and .* is not all of its network"):
        fit_updates(sums, [{}])


def test_a_core_for_the_kernel_is_a_chain_where_there_is_no_kernel():
    adapter = attach(Net(**SQUARE), AdapterConfig(method="locon-tucker", rank=2, targets=("query",)))
    path = next(iter(adapter.targets))
    wide = adapter.targets[path].sizes
    pair = LowRankUpdate(*(torch.randn(*shape, dtype=torch.float64) for shape in ((2, wide["in"]), (wide["out"], 2))))
    assert fit_updates(adapter, [{path: pair}]).error < 1e-6
    torch.testing.assert_close(adapter.delta(path), pair.up @ pair.down, rtol=1e-4, atol=1e-4)
