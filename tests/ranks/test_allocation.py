"""Ranks by bond for a number of parameters, from the spectra of what a network stacks."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, count_params, find_targets
from metalora.adapters.layout import build_layout
from metalora.methods.resolve import resolve
from metalora.ranks.allocation import ranks_by_spectra
from metalora.ranks.spectra import Cut, network_cuts, spectra

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
    found = spectra(layout, [Cut((f"r{axis}",), (factor,)) for axis, factor in enumerate("IOML", start=1)], weights)
    for axis, values in enumerate(found):
        want = torch.linalg.svdvals(whole.movedim(axis, 0).flatten(1))
        torch.testing.assert_close(values[: len(want)], want, rtol=1e-9, atol=1e-6)


def test_heads_and_separate_networks():
    """Att stacks heads, a network each target: the spectra of all together."""
    net, _ = filled()
    layout = build_layout(find_targets(net, ROLES), resolve(config("tenslora-att", rank=1)))
    weights = {path: net.get_submodule(path).weight.detach() for path in layout.targets}
    found = spectra(layout, [Cut((f"r{number}",), (factor,)) for number, factor in enumerate("IJH", start=1)], weights)
    cubes = [w.T.reshape(WIDTH, WIDTH // HEAD, HEAD) for w in weights.values()]
    for values, axis in zip(found, (0, 2, 1), strict=True):
        squares = [torch.linalg.svdvals(cube.movedim(axis, 0).flatten(1)).square() for cube in cubes]
        torch.testing.assert_close(values.square(), sum(squares), rtol=1e-9, atol=1e-9)


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


ORDERS = {  # method -> the modes of its cores, in their order
    "metatt-4d": "in layer proj out",
    "tenslora-qkv-depth-tt": "in layer proj out",
    "lotr": "in layer+proj out",
    "tenslora-qkv-depth-ring": "in layer proj out",
    "metatt-5d": "in layer proj head hdim",
}


def dense(net, modes):
    """The weights of all targets as one tensor (*modes)."""
    weights = [[layer[role].weight.detach().T for role in ROLES] for layer in net["layers"]]
    whole = torch.stack([torch.stack(parts) for parts in weights])  # (layer, proj, in, out)
    if "head" in modes:
        return whole.permute(2, 0, 1, 3).unflatten(3, (WIDTH // HEAD, HEAD))
    whole = whole.permute(2, 0, 1, 3)
    return whole.flatten(1, 2) if "layer+proj" in modes else whole


@pytest.mark.parametrize("method", ORDERS)
def test_the_spectra_of_a_train_and_a_ring_are_those_of_dense_unfoldings(method):
    net = model()
    resolved = resolve(config(method, rank=1))
    layout = build_layout(find_targets(net, ROLES), resolved)
    network = resolved.method.network
    names, whole = list(network.factors), dense(net, ORDERS[method].split())
    cuts = network_cuts(
        {name: [mode for mode in modes if mode in network.bonds] for name, modes in network.factors.items()}
    )
    assert len(cuts) == (6 if "ring" in method else len(names) - 1)
    weights = {path: net.get_submodule(path).weight for path in layout.targets}
    for cut, values in zip(cuts, spectra(layout, cuts, weights), strict=True):
        front = [names.index(factor) for factor in cut.factors]
        unfolding = whole.permute(*front, *(axis for axis in range(whole.ndim) if axis not in front)).flatten(
            len(front)
        )
        want = torch.linalg.svdvals(unfolding.flatten(0, len(front) - 1))
        torch.testing.assert_close(values, want, rtol=1e-9, atol=1e-6)


def train_filled(ranks):
    """A model whose weights are one tensor train over in, layer, proj, out."""
    net, (a, b, c) = model(), ranks
    shapes = ((1, WIDTH, a), (a, LAYERS, b), (b, 3, c), (c, WIDTH, 1))
    first, *others = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    for core in others:
        first = torch.tensordot(first, core, ([-1], [0]))
    with torch.no_grad():
        for k, layer in enumerate(net["layers"]):
            for p, role in enumerate(ROLES):
                layer[role].weight.copy_(first[0, :, k, p, :, 0].T)
    return net


@pytest.mark.parametrize("params", (40, 100, 200, 10_000))
def test_a_train_gets_its_exact_ranks_and_no_more_within_the_budget(params):
    net, exact = train_filled((3, 5, 4)), {"r1": 3, "r2": 5, "r3": 4}
    allocated = ranks_by_spectra(net, config("metatt-4d"), params)
    assert attach(net, allocated).num_params() <= params
    assert all(1 <= allocated.rank[bond] <= exact[bond] for bond in exact)
    assert (allocated.rank == exact) == (params >= 12 * 3 + 5 * 15 + 3 * 20 + 12 * 4)
    assert max(allocated.rank.values()) > 1 or params < 57


def test_a_ring_gets_ranks_whose_products_reach_those_of_all_unfoldings():
    net = train_filled((2, 3, 2))
    rank = ranks_by_spectra(net, config("tenslora-qkv-depth-ring"), 10_000).rank
    whole = dense(net, "in layer proj out".split())
    for first, second, front in (("r0", "r1", (0,)), ("r0", "r2", (0, 1)), ("r0", "r3", (0, 1, 2)),
                                 ("r1", "r2", (1,)), ("r1", "r3", (1, 2)), ("r2", "r3", (2,))):  # fmt: skip
        back = [axis for axis in range(4) if axis not in front]
        unfolding = whole.permute(*front, *back).flatten(len(front)).flatten(0, len(front) - 1)
        assert rank[first] * rank[second] >= torch.linalg.matrix_rank(unfolding)


@pytest.mark.parametrize(
    ("params", "ranks"),  # 4 r1 + r1 r2 + 4 r2 numbers: 9, 20, 33
    [(9, 1), (19, 1), (20, 2), (32, 2), (33, 3), (1000, 3)],
)
def test_bonds_beside_a_core_of_size_one_grow_together(params, ranks):
    net = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])))
    allocated = ranks_by_spectra(net, AdapterConfig("lotr", targets=("0",)), params)
    assert allocated.rank == {"r1": ranks, "r2": ranks}


@pytest.mark.parametrize(
    ("params", "ranks"),
    [
        (12, (1, 1)),  # 4 r1 + 2 r1 r2 + 6 r2 numbers; what is kept is 16 + 4 of 20 at bond r2, all of it at r1
        (19, (1, 1)),
        (20, (1, 2)),
        (500, (1, 2)),
    ],
)
def test_only_the_bond_that_the_stack_needs_is_raised(params, ranks):
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(4, 6))
    with torch.no_grad():
        for number, (layer, value) in enumerate(zip(net, (4.0, 2.0), strict=True)):
            layer.weight.zero_()
            layer.weight[number, 0] = value  # both read the first input; each writes to an output of its own
    allocated = ranks_by_spectra(net, AdapterConfig("lotr", targets=("0", "1")), params)
    assert tuple(allocated.rank.values()) == ranks


def test_widths_of_several_kinds_lie_one_after_another():
    """A train over two layers, each from 6 to 12 and back: bond r1 sees both kinds of inputs."""
    blocks = (nn.ModuleDict({"up": nn.Linear(6, 12), "down": nn.Linear(12, 6)}) for _ in range(2))
    net = nn.ModuleDict({"layers": nn.ModuleList(blocks)}).double()
    resolved = resolve(AdapterConfig("metatt-4d", rank=1, targets=("up", "down")))
    layout = build_layout(find_targets(net, ("up", "down")), resolved)
    weights = {path: net.get_submodule(path).weight.detach() for path in layout.targets}
    [values] = spectra(layout, [Cut(("r1",), ("G1",))], weights)
    whole = torch.zeros(18, 2, 2, 18, dtype=torch.float64)  # (in, layer, proj, out), the widths 6 and 12 in a row
    for k, layer in enumerate(net["layers"]):
        whole[:6, k, 0, 6:] = layer["up"].weight.detach().T
        whole[6:, k, 1, :6] = layer["down"].weight.detach().T
    torch.testing.assert_close(values, torch.linalg.svdvals(whole.flatten(1)), rtol=1e-9, atol=1e-6)


def test_what_has_no_spectra():
    for method in ("fact-tk-code", "quanta", "vera", "loretta-adp", "mtl-lora"):
        with pytest.raises(ValueError, match=f"{method!r} is not a tensor train, a Tucker network or a ring"):
            ranks_by_spectra(model(), config(method), 1000)
    for method in ("lora", "tenslora-qkv-depth-cp"):
        with pytest.raises(ValueError, match=f"{method!r} has one rank, so that there is nothing to share out"):
            ranks_by_spectra(model(), config(method), 1000)
    with pytest.raises(ValueError, match="has 33 numbers at rank one, above 32"):
        ranks_by_spectra(model(), config(), 32)
    with torch.device("meta"), pytest.raises(ValueError, match="weights of ModuleDict were not loaded"):
        ranks_by_spectra(model(), config(), 1000)
