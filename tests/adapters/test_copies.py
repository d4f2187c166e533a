"""A network for each layer, each projection or each of both; factors of other owners; frozen ones; orders of heads."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metalora import AdapterConfig, ConditionConfig, attach, count_params, load, new_task, save, sweep
from metalora.adapters.layout.axes import digits_of
from metalora.tensornet.network import Network
from support.adapters import assert_close
from support.transformer import DEPTH, WIDTH, attach_to_transformer, check_whole_model, small_transformer

PATHS = {(k, m): f"layers.{k}.attention.{name}" for k in range(DEPTH) for m, name in enumerate(("query", "key"))}


def tucker(core, first, *others):
    """core x_1 F_1 x_2 F_2 ..., as an einsum."""
    n, where = len(others) + 1, "abcdefgh"
    terms = [f"{where[k].upper()}{where[k]}" for k in range(n)]
    out = "".join(where[k].upper() for k in range(n))
    return torch.einsum(f"{where[:n]},{','.join(terms)}->{out}", core, first, *others)


CONSTRUCTIONS = {  # TensLoRA: the names of its factors in its code's order of modes, and who has a network
    "att": ("IJH", lambda k, m: f"layer{k}.proj{m}."),
    "qkv": ("IOM", lambda k, m: f"layer{k}."),
    "depth": ("IOL", lambda k, m: f"proj{m}."),
    "att-qkv": ("IJHM", lambda k, m: f"layer{k}."),
    "att-depth": ("IJHL", lambda k, m: f"proj{m}."),
    "qkv-depth": ("IOML", lambda k, m: ""),
    "att-qkv-depth": ("IJHML", lambda k, m: ""),
}
LETTERS = {"layer": 0, "proj": 1}


@pytest.mark.parametrize("order", ("model", "tenslora"))
@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_tenslora_of_every_layer_and_projection(name, order):
    """Dense tensors of all, and the slices that every target reads; heads are blocks, or interleaved as in its code."""
    letters, owner = CONSTRUCTIONS[name]
    if order == "tenslora" and "J" not in letters:
        with pytest.raises(ValueError, match="it has no heads, so order='tenslora'"):
            attach_to_transformer(f"tenslora-{name}", order=order)
        return
    net, adapter = attach_to_transformer(f"tenslora-{name}", targets=("query",), alpha=0.5, order=order)
    f = {key: value.detach() for key, value in adapter.factors.items()}
    assert count_params(adapter.config, list(adapter.targets.values())) == sum(v.numel() for v in f.values())
    for k in range(DEPTH):
        who = owner(k, 0)
        whole = tucker(*(f[f"{who}{one}"] for one in ("core", *letters)))
        if "L" in letters:
            whole = whole[..., k]
        whole = whole[..., 0] if "M" in letters else whole
        if "J" in letters:
            whole = (whole if order == "tenslora" else whole.mT).flatten(1)
        assert_close(adapter.delta(PATHS[k, 0]), 0.5 * whole.T)


WHOLE = {
    "att": dict(method="tenslora-att", targets=("query", "key")),
    "att, fused": dict(method="tenslora-att", targets=("query", "qkv")),
    "att-qkv, fused": dict(method="tenslora-att-qkv", targets=("query", "key", "qkv")),
    "depth, widths": dict(method="tenslora-depth-cp", targets=("query", "up", "down")),
    "depth, max_slice": dict(method="tenslora-depth-ring", targets=("query", "up", "down"), widths="max_slice"),
    "qkv, widths": dict(method="tenslora-qkv-tt", targets=("query", "up", "down")),
    "qkv-depth, chunk": dict(method="tenslora-qkv-depth", targets=("query", "up", "down"), widths="chunk"),
    "lotr": dict(method="lotr", targets=("query", "qkv", "up")),
    "fact-tk, chunk": dict(method="fact-tk", targets=("query", "up", "down"), widths="chunk"),
    "lorta, grouped heads": dict(method="lorta", targets=("query", "key")),
    "lorta-in": dict(method="lorta-in", targets=("query", "up")),
    "vera": dict(method="vera", rank=9, targets=("query", "up", "down")),
    "vera, max_slice": dict(method="vera", rank=9, targets=("query", "up", "down"), widths="max_slice"),
    "tensorpeft": dict(method="tensorpeft", targets=("query", "up", "down")),
    "lokr": dict(method="lokr", targets=("query", "qkv", "up"), digits={"in": "3 2", "out": "6 2"}),
    "tt-lora": dict(method="tt-lora", targets=("query", "c_attn", "down")),
    "loretta-rep": dict(method="loretta-rep", targets=("query", "c_attn")),
    "moe-lora-shared": dict(method="moe-lora-shared", targets=("query", "up"), tasks=3, experts=2),
    "mtl-lora": dict(method="mtl-lora", targets=("query", "up"), tasks=3, experts=2),
    "mtlora": dict(method="mtlora", targets=("query", "up"), tasks=3),
    "task-lora": dict(method="task-lora", targets=("query", "up"), tasks=3),
    "frozen core": dict(method="metatt-4d", targets=("query", "up"), frozen=("G2",), init="no-no-no-ze"),
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_a_whole_model(options, tmp_path):
    check_whole_model(tmp_path, **options)


def test_ranks_by_mode_in_the_papers_order():
    _, adapter = attach_to_transformer("tenslora-qkv-depth", (4, 3, 2, 3), targets=("query", "qkv"))
    assert {key: tuple(value.shape) for key, value in adapter.factors.items()} == {
        "I": (WIDTH, 4), "O": (WIDTH, 3), "M": (4, 2), "L": (DEPTH, 3), "core": (4, 3, 2, 3),
    }  # fmt: skip
    with pytest.raises(ValueError, match="rank has 2 numbers for the bonds r1, r2, r3, r4"):
        attach_to_transformer("tenslora-qkv-depth", (4, 3))


def test_a_rank_above_a_mode_is_taken_or_lowered():
    _, adapter = attach_to_transformer("tenslora-qkv-depth", 5, targets=("query",))
    assert adapter.factors["core"].shape == (5, 5, 5, 5)
    _, adapter = attach_to_transformer("tenslora-qkv-depth", 5, targets=("query",), clip_rank=True)
    assert adapter.factors["core"].shape == (5, 5, 1, DEPTH)


def test_vera_is_one_pair_for_the_model_and_vectors_for_each_target():
    _, adapter = attach_to_transformer("vera", 9, targets=("query", "up"), widths="max_slice")
    f = {key: value.detach() for key, value in adapter.factors.items()}
    assert set(adapter.state_dict()) == {f"owned.{key.replace('.', '/')}" for key in f if key not in "AB"}
    assert f["A"].shape == (WIDTH, 9) and f["B"].shape == (9, 2 * WIDTH)
    d, b = f[f"{PATHS[1, 0]}.d"], f[f"{PATHS[1, 0]}.b"]
    assert_close(adapter.delta(PATHS[1, 0]), 0.5 * (f["A"] * d @ f["B"][:, :WIDTH] * b).T)


def test_a_gate_of_the_model_serves_every_target():
    net, adapter = attach_to_transformer("moe-lora-shared", targets=("query", "up"), tasks=3, experts=2)
    gates = [key for key, one in adapter.layout.params.items() if one.factor == "g"]
    assert gates == ["g"] and adapter.factors["g"].shape == (3, 2)
    g = adapter.factors["g"].detach().softmax(-1)
    path = "layers.2.up"
    A, B = (adapter.factors[f"{path}.{one}"].detach() for one in "AB")
    want = sum(g[1, n] * A[n] @ B[n] for n in range(2)).T
    assert_close(adapter.delta(path, adapter.task(1)), 0.25 * want)
    x, ids = torch.randn(3, 5, WIDTH, dtype=torch.float64), torch.tensor([2, 0, 1])
    assert_close(net(x, task_ids=ids), torch.cat([net(x[i : i + 1], task_ids=int(ids[i])) for i in range(3)]))


def test_each_network_is_swept():
    net, adapter = attach_to_transformer("tenslora-att", 3, targets=("query",))
    before = adapter.delta(PATHS[1, 0])
    assert sweep(net, rank=3).error < 1e-6  # the difference of two norms
    assert_close(adapter.delta(PATHS[1, 0]), before)
    report = sweep(net, rank={"r2": 1, "r3": 2})
    assert adapter.factors["layer2.proj0.core"].shape == (2, 1, 2) and 0 < report.error < 1


def test_no_tensor_of_all_layers_is_ever_formed():
    """The largest tensor of a forward and backward is far below in x out x 3 x layers, and below in x out."""

    class Largest(TorchDispatchMode):
        numel, known = 0, ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            made = [one for one in (found if isinstance(found, (tuple, list)) else [found]) if torch.is_tensor(one)]
            self.numel = max(
                [self.numel, *(one.numel() for one in made if one.untyped_storage().data_ptr() not in self.known)]
            )
            return found

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"q": torch.nn.Linear(256, 256)}) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = layer["q"](x)
            return x

    for form in ("", "-cp", "-tt", "-ring"):
        net = Wide()
        adapter = attach(net, AdapterConfig(f"tenslora-att-qkv-depth{form}", 3, head_dim=64))
        adapter.weight_first = False
        with Largest() as seen:
            seen.known = [p.untyped_storage().data_ptr() for p in net.parameters()]
            net(torch.randn(2, 256)).sum().backward()
        assert seen.numel <= 256 * 256 / 4


def test_digits():
    assert digits_of(768, 3) == [8, 8, 12] and digits_of(7, 3) == [1, 1, 7] and digits_of(16, 2) == [4, 4]
    assert digits_of(768, 3, "16 16 12, 64 4 3") == [64, 4, 3] and digits_of(6, 2, "64 4 3") == [2, 3]
    with pytest.raises(ValueError, match="in 'query': '64 12' has 2 digits, expected 3"):
        digits_of(768, 3, "64 12", "in 'query'")
    with pytest.raises(ValueError, match="'8 x' is not a list of whole numbers"):
        digits_of(8, 2, "8 x")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(frozen=("G7",)), "frozen names factor 'G7'"),
        (dict(frozen=("G1",)), "frozen factor G1 starts at zero, so Delta W would always be zero"),
        (dict(frozen=("G2",), generated=("G2",)), "factor 'G2' is both frozen and generated"),
        (dict(order=("tenslros",)), "did you mean 'tenslora'"),
        (dict(init={"G2": "normal:x"}), "factor 'G2': initialisation 'normal:x', expected a number"),
        (dict(init={"G2": "identity:2"}), "factor 'G2': initialisation 'identity:2', expected a number"),
        (dict(init={"G2": "normel"}), "unknown initialisation 'normel'; did you mean 'normal'"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(ValueError, match=message):
        attach(small_transformer(), AdapterConfig(**(dict(method="metatt-4d", rank=2, targets=("query",)) | changes)))


def test_frozen_factors_are_made_again_from_the_seed():
    constant = ConditionConfig(scope="constant")
    config = AdapterConfig("lora", 2, targets=("query",), frozen=("A",), condition=constant, seed=3)
    adapter = attach(small_transformer(), config)
    assert adapter.num_params() == DEPTH * 2 * WIDTH == sum(p.numel() for p in adapter.parameters())
    key = f"{PATHS[1, 0]}.A"
    assert not adapter.factors[key].requires_grad and not any("A" in name for name in adapter.state_dict())
    assert torch.equal(attach(small_transformer(), config).factors[key], adapter.factors[key])
    assert not adapter.factors[key].eq(0).any()


def test_a_file_whose_frozen_factors_come_out_otherwise_is_refused(tmp_path, monkeypatch):
    net, _ = attach_to_transformer("vera", 9, targets=("query",))
    save(net, tmp_path / "a")
    fresh, plain = small_transformer(), torch.Tensor.uniform_
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **k: plain(self, *a, **k).mul_(2))
    with pytest.raises(ValueError, match="its frozen factors are not those that seed 0 makes"):
        load(fresh, tmp_path / "a")
    assert type(fresh.layers[0].attention.query) is torch.nn.Linear


@pytest.mark.parametrize("init", ({}, "or-or-or-ze", "no-no-no-ze", "ka-ka-ka-ze"))
def test_initialisations_of_tenslora(init):
    """Its factors are orthogonal by default, those of the small modes as whole matrices; the core is zero."""
    net = small_transformer()
    adapter = attach(net, AdapterConfig("tenslora-att", 2, targets=("query",), init=init))
    f = {key: value.detach() for key, value in adapter.factors.items()}
    for k in range(DEPTH):
        assert not f[f"layer{k}.proj0.core"].any()
        for one in "IJH":
            factor = f[f"layer{k}.proj0.{one}"]
            assert factor.any()
            if init in ({}, "or-or-or-ze"):
                torch.testing.assert_close(factor.T @ factor, torch.eye(2).double(), rtol=0, atol=1e-6)


def test_initialisations_with_numbers():
    """LoRTA: A uniform up to 1 / sqrt(r), the others up to sqrt(6 / r). VeRA: d = 0.1."""
    adapter = attach(small_transformer(), AdapterConfig("lorta", 2, targets=("query",)))
    f = {key: value.detach().abs().max() for key, value in adapter.factors.items()}
    assert 0.5 < f["A"] <= 2**-0.5 and 2**-0.5 < max(f["C_H"], f["C_L"], f["C_P"]) <= 3**0.5 and f["B"] == 0
    adapter = attach(small_transformer(), AdapterConfig("vera", 9, targets=("query",)))
    assert torch.equal(adapter.factors[f"{PATHS[0, 0]}.d"], torch.full((9,), 0.1).double())
    assert 3**0.5 / WIDTH**0.5 < adapter.factors["A"].abs().max() <= 6**0.5 / WIDTH**0.5


def test_a_generated_factor_that_no_target_reads():
    condition = ConditionConfig(source="tensor", feature_size=4)
    with pytest.raises(ValueError, match="generated names factor 'w2', which none of the targets reads .they read A1,"):
        attach(
            small_transformer(), AdapterConfig("cara", 2, targets=("query",), generated=("w2",), condition=condition)
        )


def test_deviation_by_all_ranks():
    """TensLoRA's normal start, s = (1 / prod sqrt(r))^(1 / (order + 1)): with such a core, variance one."""
    net = torch.nn.Sequential(torch.nn.Linear(240, 240))
    options = dict(rank=(8, 5, 3), targets=("0",), head_dim=40)
    adapter = attach(net, AdapterConfig("tenslora-att", init=dict.fromkeys(("I", "J", "H", "core"), "unit"), **options))
    f = {key.rpartition(".")[2]: value.detach() for key, value in adapter.factors.items()}
    assert f["I"].std() == pytest.approx((1 / (8 * 5 * 3) ** 0.5) ** (1 / 4), rel=0.05)
    assert adapter.delta("0").detach().std() == pytest.approx(1, rel=0.3)
    with pytest.raises(ValueError, match="initialisation 'unit:2', expected a number as in"):
        attach(torch.nn.Sequential(torch.nn.Linear(6, 6)), AdapterConfig(init={"A": "unit:2"}, targets=("0",), rank=1))


def test_scales():
    for options, scale in (
        (dict(method="rslora"), 4.0),
        (dict(scale="alpha/sqrt(r)"), 4.0),
        (dict(scale="alpha"), 8.0),
    ):
        config = AdapterConfig(**(dict(method="lora", rank=4, alpha=8.0, targets=("query",)) | options))
        assert attach(small_transformer(), config).scale == scale


@pytest.mark.parametrize("method", ("mtl-lora", "mtlora", "task-lora", "moe-lora-shared"))
def test_a_later_task_leaves_the_others_their_bits(method):
    net, adapter = attach_to_transformer(method, tasks=2, targets=("query", "up"), experts=2)
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    before = [net(x, task_ids=k) for k in range(2)]
    with new_task(adapter, like=1) as number:
        optimiser = torch.optim.SGD(adapter.parameter_groups(0.1))
        net(x, task_ids=number).square().sum().backward()
        optimiser.step()
    assert number == 2 and not torch.equal(net(x, task_ids=2), before[1])
    assert all(torch.equal(net(x, task_ids=k), before[k]) for k in range(2))


def test_a_sum_is_swept_term_by_term():
    net, adapter = attach_to_transformer("mtlora", 3, tasks=2, targets=("query",))
    before = adapter.delta(PATHS[1, 0], adapter.task(1))
    assert sweep(net, rank=3).error < 1e-6
    assert_close(adapter.delta(PATHS[1, 0], adapter.task(1)), before)
    sweep(net, rank={"rt": 1})
    assert adapter.layers[PATHS[1, 0]].form.rank == 4


def test_terms_hold_every_factor_once():
    specs = {"A": "in r", "B": "r out", "C": "in s", "D": "s out"}
    assert len(Network.parse(specs, terms=[("A", "B"), ("C", "D")]).split_terms()) == 2
    with pytest.raises(ValueError, match="each of the factors A, B, C, D is in one of them"):
        Network.parse(specs, terms=[("A", "B"), ("C",)])
