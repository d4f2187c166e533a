"""Ranks by mode for a number of parameters, from the spectra of what a Tucker network stacks."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, count_params, find_targets
from metalora.adapters.layout import build_layout
from metalora.methods.resolve import resolve
from metalora.ranks.allocation import ranks_by_spectra, spectra

LAYERS, WIDTH, HEAD = 5, 12, 3
ROLES = ("query", "key", "value")
TRUE = {"r1": 4, "r2": 3, "r3": 2, "r4": 2}  # of in, out, proj, layer


def model():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.ModuleDict({role: nn.Linear(WIDTH, WIDTH) for role in ROLES}) for _ in range(LAYERS))
    return nn.ModuleDict({"layers": layers}).double()


def tucker(shapes, ranks):
    """A tensor with these multilinear ranks."""
    whole = torch.randn(*ranks, dtype=torch.float64)
    for axis, (n, r) in enumerate(zip(shapes, ranks, strict=True)):
        factor = torch.linalg.qr(torch.randn(n, r, dtype=torch.float64)).Q
        whole = torch.tensordot(factor, whole, ([1], [axis])).movedim(0, axis)
    return whole


def filled(ranks=(4, 3, 2, 2)):
    net, whole = model(), tucker((WIDTH, WIDTH, 3, LAYERS), ranks)
    with torch.no_grad():
        for k, layer in enumerate(net["layers"]):
            for p, role in enumerate(ROLES):
                layer[role].weight.copy_(whole[:, :, p, k].T)
    return net, whole


def config(method="tenslora-qkv-depth", **changes):
    return AdapterConfig(method, targets=ROLES, head_dim=HEAD, **changes)


def test_exact_ranks_are_found_and_nothing_above_them():
    net, _ = filled()
    allocated = ranks_by_spectra(net, config(), 10_000)
    assert allocated.rank == TRUE
    assert (
        attach(net, allocated).num_params()
        == sum(n * r for n, r in zip((12, 12, 3, 5), (4, 3, 2, 2), strict=True)) + 48
    )


def test_spectra_are_those_of_the_unfoldings():
    net, whole = filled((6, 5, 3, 4))
    layout = build_layout(find_targets(net, ROLES), resolve(config(rank=1)))
    weights = {path: net.get_submodule(path).weight for path in layout.targets}
    values_by_bond = spectra(layout, {"r1": "I", "r2": "O", "r3": "M", "r4": "L"}, weights)
    for axis, values in enumerate(values_by_bond.values()):
        want = torch.linalg.svdvals(whole.movedim(axis, 0).flatten(1))
        torch.testing.assert_close(values[: len(want)], want, rtol=1e-9, atol=1e-6)


def test_heads_and_separate_networks():
    """Att stacks heads, a network each target: the spectra of all together."""
    net, _ = filled()
    layout = build_layout(find_targets(net, ROLES), resolve(config("tenslora-att", rank=1)))
    weights = {path: net.get_submodule(path).weight.detach() for path in layout.targets}
    values_by_bond = spectra(layout, {"r1": "I", "r2": "J", "r3": "H"}, weights)
    cubes = [w.T.reshape(WIDTH, WIDTH // HEAD, HEAD) for w in weights.values()]
    for bond, axis in (("r1", 0), ("r2", 2), ("r3", 1)):
        squares = [torch.linalg.svdvals(cube.movedim(axis, 0).flatten(1)).square() for cube in cubes]
        torch.testing.assert_close(values_by_bond[bond].square(), sum(squares), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("params", (60, 100, 150, 215))
def test_the_budget_is_kept_and_larger_directions_come_first(params):
    net, _ = filled()
    allocated = ranks_by_spectra(net, config(), params)
    assert count_params(allocated, find_targets(net, ROLES)) <= params
    assert all(1 <= allocated.rank[bond] <= TRUE[bond] for bond in TRUE)
    larger = ranks_by_spectra(net, config(), 216)
    assert all(allocated.rank[bond] <= larger.rank[bond] for bond in TRUE) and larger.rank == TRUE


def test_slices_are_stacked_too():
    """FacT-TK: two layers of an MLP in two slices each, one along the outputs, one along the inputs."""
    torch.manual_seed(1)
    whole = tucker((WIDTH, WIDTH, 4 * LAYERS), (4, 3, 5))
    blocks = (
        nn.ModuleDict({"a": nn.Linear(WIDTH, 2 * WIDTH), "b": nn.Linear(2 * WIDTH, WIDTH)}) for _ in range(LAYERS)
    )
    net = nn.ModuleDict({"layers": nn.ModuleList(blocks)}).double()
    with torch.no_grad():
        for k, layer in enumerate(net["layers"]):
            first, second, third, fourth = whole[:, :, 4 * k : 4 * k + 4].unbind(-1)
            layer["a"].weight.copy_(torch.cat([first, second], 1).T)
            layer["b"].weight.copy_(torch.cat([third, fourth], 0).T)
    allocated = ranks_by_spectra(net, AdapterConfig("fact-tk", targets=("a", "b"), widths="chunk"), 10_000)
    assert allocated.rank == {"r1": 4, "r2": 3, "r3": 5}


def test_other_tensors_than_the_weights():
    net, _ = filled()
    gradients = {path: torch.ones(WIDTH, WIDTH) for path, _ in net.named_modules() if path.endswith(ROLES)}
    assert set(ranks_by_spectra(net, config(), 1000, gradients).rank.values()) == {1}
    gradients["layers.0.query"] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"'layers.0.query' is \(2, 2\), expected one of shape \(12, 12\)"):
        ranks_by_spectra(net, config(), 1000, gradients)
    with pytest.raises(ValueError, match="'layers.0.query' is none, expected"):
        ranks_by_spectra(net, config(), 1000, {})


def test_what_has_no_spectra():
    for method in (
        "fact-tk-code",
        "lora",
        "metatt-4d",
        "tenslora-qkv-depth-cp",
        "tenslora-qkv-depth-ring",
        "quanta",
        "vera",
    ):
        with pytest.raises(ValueError, match=f"{method!r} is not a Tucker"):
            ranks_by_spectra(model(), config(method), 1000)
    with pytest.raises(ValueError, match="has 33 numbers at rank one, above 32"):
        ranks_by_spectra(model(), config(), 32)
    with torch.device("meta"), pytest.raises(ValueError, match="weights of ModuleDict were not loaded"):
        ranks_by_spectra(model(), config(), 1000)
