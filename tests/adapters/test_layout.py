"""One network for all targets: layers, projections, heads, unequal widths and tasks, against plain loops."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from metalora import AdapterConfig, ConditionConfig, attach, find_targets, merge
from metalora.adapters.layout import build_layout
from metalora.methods.resolve import resolve
from support.adapters import randomise
from support.transformer import DEPTH, HEAD, WIDTH, attach_to_transformer, check_whole_model, small_transformer


def chain(*matrices):
    return torch.linalg.multi_dot(matrices) if len(matrices) > 1 else matrices[0]


def test_targets_know_their_layer_and_their_role():
    found = {target.path: target for target in find_targets(small_transformer(), "*layers*")}
    assert len(found) == 6 * DEPTH
    one = found["layers.2.attention.qkv"]
    assert (one.layer, one.role, one.parts, one.head_dim) == ((2,), "layers.*.attention.qkv", 3, HEAD)
    other = nn.ModuleDict({name: nn.Linear(WIDTH, 3 * WIDTH) for name in ("in_proj", "query_proj", "wq", "up")})
    assert {t.path: (t.parts, t.heads) for t in find_targets(other, "*")} == {
        "in_proj": (1, "out"),  # DeBERTa's: query, key and value head by head
        "query_proj": (1, "out"),
        "wq": (1, "out"),
        "up": (1, ""),
    }
    assert found["layers.0.attention.c_attn"].parts == 3 and found["layers.0.up"].parts == 1
    assert find_targets(small_transformer(), "head")[0].layer is None


def test_a_number_counts_layers_only_among_modules_of_one_class():
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))})
    assert [target.layer for target in find_targets(net, "body*")] == [None, None]
    with pytest.raises(
        ValueError, match="'body.0': method 'metatt-4d' numbers the layers, and this path has no number"
    ):
        attach(net, AdapterConfig("metatt-4d", 2, targets="body*"))


@pytest.mark.parametrize("order", (None, ("in", "proj", "layer", "out"), ("layer", "in", "proj", "out")))
def test_every_target_reads_its_slices(order):
    """Delta W of every layer and projection, with the slices taken by hand."""
    net, adapter = attach_to_transformer(targets=("up", "query", "qkv"), order=order)
    factors = {name: value.detach() for name, value in adapter.factors.items()}
    where = dict(zip(order or ("in", "layer", "proj", "out"), ("G1", "G2", "G3", "G4"), strict=True))
    starts = {"attention.query": (0, 1), "attention.qkv": (1, 3), "up": (4, 1)}  # five projections, in model order
    wide = f"{where['out']}.{2 * WIDTH}"
    assert {factors[where["layer"]].numel(), factors[where["proj"]].numel()} <= {4 * DEPTH, 4 * 5, 2 * DEPTH, 2 * 5}
    for name, (start, count) in starts.items():
        for layer in range(DEPTH):
            blocks = []
            for m in range(start, start + count):
                out = wide if name == "up" else f"{where['out']}.{WIDTH}"
                cores = [factors[where["in"]], factors[where["layer"]], factors[where["proj"]], factors[out]]
                modes = [adapter.method.network.factors[where[mode]] for mode in ("in", "layer", "proj", "out")]
                taken = {"layer": layer, "proj": m}
                blocks.append(contracted(cores, modes, taken))
            want = 0.5 * torch.cat(blocks, 1).T
            torch.testing.assert_close(adapter.delta(f"layers.{layer}.{name}"), want, rtol=1e-10, atol=1e-10)


def contracted(cores, modes, taken):
    """Sum over the bonds of single numbers' products: in x out."""
    picked, left = [], []
    for core, term in zip(cores, modes, strict=True):
        term = [mode for mode in term if mode not in ("kh", "kw")]
        picked.append(core[tuple(taken.get(mode, slice(None)) for mode in term)])
        left.append([mode for mode in term if mode not in taken])
    names = sorted({mode for term in left for mode in term})
    letters = ",".join("".join(chr(97 + names.index(mode)) for mode in term) for term in left)
    return torch.einsum(f"{letters}->{chr(97 + names.index('in'))}{chr(97 + names.index('out'))}", *picked)


def test_grouped_heads_read_the_first_slices():
    net, adapter = attach_to_transformer("metatt-5d", targets=("query", "key"))
    g1, g2, g3, g4, g5 = (adapter.factors[f"G{k}"].detach() for k in range(1, 6))
    assert g4.shape == (2, WIDTH // HEAD, 2) and g5.shape == (2, HEAD)
    for name, m, heads in (("query", 0, 3), ("key", 1, 1)):
        blocks = [g1 @ g2[:, 1] @ g3[:, m] @ g4[:, h] @ g5 for h in range(heads)]
        want = 0.5 * torch.cat(blocks, 1).T
        torch.testing.assert_close(adapter.delta(f"layers.1.attention.{name}"), want, rtol=1e-10, atol=1e-10)


def test_widths_as_slices_of_the_largest():
    net, adapter = attach_to_transformer(targets=("up", "down"), widths="max_slice")
    g1, g2, g3, g4 = (adapter.factors[f"G{k}"].detach() for k in range(1, 5))
    assert len(g1) == g4.shape[1] == 2 * WIDTH
    want = 0.5 * (g1[:WIDTH] @ g2[:, 2] @ g3[:, 0] @ g4).T
    torch.testing.assert_close(adapter.delta("layers.2.up"), want, rtol=1e-10, atol=1e-10)
    want = 0.5 * (g1 @ g2[:, 0] @ g3[:, 1] @ g4[:, :WIDTH]).T
    torch.testing.assert_close(adapter.delta("layers.0.down"), want, rtol=1e-10, atol=1e-10)


def test_widths_as_chunks_that_are_projections():
    net, adapter = attach_to_transformer(targets=("query", "up", "down"), widths="chunk")
    g1, g2, g3, g4 = (adapter.factors[f"G{k}"].detach() for k in range(1, 5))
    assert g3.shape == (2, 5, 2) and len(g1) == WIDTH
    up = torch.cat([g1 @ g2[:, 1] @ g3[:, m] @ g4 for m in (1, 2)], 1)
    down = torch.cat([g1 @ g2[:, 1] @ g3[:, m] @ g4 for m in (3, 4)], 0)
    torch.testing.assert_close(adapter.delta("layers.1.up"), 0.5 * up.T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(adapter.delta("layers.1.down"), 0.5 * down.T, rtol=1e-10, atol=1e-10)
    assert net.layers[1].down.form.rank == 2  # cut beside the last core, not through every bond


CONFIGS = {
    "4d": dict(method="metatt-4d"),
    "4d-heads-of-three": dict(method="metatt-5d", targets=("query", "key", "qkv", "up")),
    "4d-chunk": dict(method="metatt-4d", targets=("query", "up", "down"), widths="chunk"),
    "4d-slice": dict(method="metatt-4d", widths="max_slice"),
    "4+1d-tasks": dict(method="metatt-4+1d", tasks=3),
    "6d-tasks": dict(method="metatt-6d", tasks=3, targets=("query", "up")),
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_a_whole_model(options, tmp_path):
    check_whole_model(tmp_path, **options)


def test_a_layer_called_alone_reads_the_same_slices():
    net, adapter = attach_to_transformer(targets=("query", "up"))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    seen = {}
    net.layers[1].register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    net(x)
    torch.testing.assert_close(net.layers[1](seen["x"]), seen["y"], rtol=1e-12, atol=1e-12)


# ---- tasks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ("metatt-4+1d", "metatt-6d"))
def test_a_batch_of_many_tasks_is_each_example_with_its_own(method):
    net, adapter = attach_to_transformer(method, tasks=8, targets=("query", "up"))
    x, ids = torch.randn(64, 5, WIDTH, dtype=torch.float64), torch.arange(64) % 8
    together = net(x, task_ids=ids)
    alone = torch.cat([net(x[i : i + 1], task_ids=int(ids[i])) for i in range(64)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together, net(x, task_ids=0))


@pytest.mark.parametrize(
    "ids, message",
    [
        (None, "metatt-4\\+1d has 3 tasks: call the model with task_ids"),
        (3, "task 3: expected 0..2"),
        (torch.tensor([0, -1]), "task -1: expected 0..2"),
        (torch.tensor([0.5, 1.0]), "task 0.5: expected 0..2"),
        (torch.tensor([0, 1, 2]), "the condition is for 3 examples, the layer got 2"),
    ],
)
def test_wrong_tasks(ids, message):
    net, adapter = attach_to_transformer("metatt-4+1d", tasks=3, targets=("query",))
    with pytest.raises(ValueError, match=message):
        net(torch.randn(2, 5, WIDTH, dtype=torch.float64), task_ids=ids)
    assert adapter.current().values is None and adapter.state.forward is None


def test_a_task_core_made_from_features_is_the_same_declaration():
    """One word: the task core is generated; a condition for each example, of an adapter that starts as the base."""
    condition = ConditionConfig(source="tensor", feature_size=4, hidden=3)
    net = small_transformer()
    options = dict(targets=("query", "up"), generated=("G3",), condition=condition)
    adapter = attach(net, AdapterConfig("metatt-4+1d", 2, **options))
    assert adapter.factors["G3"].shape == (2, 2)
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    assert torch.equal(net(x, condition=adapter.condition(torch.randn(3, 4))), small_transformer()(x))
    randomise(adapter)
    made = adapter.condition(torch.randn(3, 4))
    together = net(x, condition=made)
    alone = torch.cat([net(x[i : i + 1], condition=made[i]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


# ---- what cannot be -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(method="metatt-4d", tasks=2), "tasks=2, expected 1; it has no task mode"),
        (dict(method="metatt-4d", rank=7), "method 'metatt-4d': rank 7 of bond 'r1' is above 6"),
        (dict(method="metatt-5d", rank={"r1": 2, "r2": 2, "r3": 2, "r4": 3}), "rank 3 of bond 'r4' is above 2"),
        (dict(method="metatt-5d", head_dim=4), "its 6 outputs are not heads of 4"),
        (dict(method="metatt-4d", order=("in", "layer", "out")), "expected an order of in, layer, proj, out"),
        (dict(method="lora", order=("in", "out")), "it is not a tensor train"),
        (dict(method="metatt-4d", init="ze-id-id"), "not a code of one word for each of G1, G2, G3, G4"),
        (dict(method="metatt-4d", init="ze-id-id-ze"), "factors G1, G4 all start at zero"),
    ],
)
def test_refusals(changes, message):
    net = small_transformer()
    with pytest.raises(ValueError, match=message):
        attach(net, AdapterConfig(**(dict(rank=2, targets=("query",)) | changes)))
    assert all(type(m) in (nn.Linear, Conv1D) for n, m in net.named_modules() if n.endswith(("query", "qkv")))


def test_a_chunk_on_both_sides_is_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="widths 'chunk' cuts one side of a weight"):
        attach(net, AdapterConfig("metatt-4d", 2, targets=("0", "1"), widths="chunk"))


def test_init_codes():
    net = small_transformer()
    adapter = attach(net, AdapterConfig("metatt-4d", 2, targets=("query",), init="no-or-id-ze"))
    g1, g2, g3, g4 = (adapter.factors[f"G{k}"].detach() for k in range(1, 5))
    assert not g4.any() and 0.05 < g1.std() < 0.4
    for layer in range(DEPTH):
        torch.testing.assert_close(g2[:, layer] @ g2[:, layer].T, torch.eye(2).double(), rtol=0, atol=1e-6)
    assert torch.equal(g3[:, 0], torch.eye(2).double())


def test_learning_rates_by_factor():
    net, adapter = attach_to_transformer(targets=("query", "up"))
    groups = adapter.parameter_groups(0.1, factor_lr_ratio={"G1": 4.0, "G4": 0.5})
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    want = {"G1": 0.4, "G2": 0.1, "G3": 0.1, "G4.6": 0.05, "G4.12": 0.05}
    assert {key: found[id(value)] for key, value in adapter.factors.items()} == pytest.approx(want)
    with pytest.raises(ValueError, match="factor_lr_ratio names 'G7'"):
        adapter.parameter_groups(0.1, factor_lr_ratio={"G7": 1.0})


# ---- well-known families --------------------------------------------------------------------------------------------
FAMILIES = {  # targets -> (roles in the first layer, parts of a fused one, size of a head)
    "bert-base": ("query,key,value,*.output.dense,*.intermediate.dense", 6, 1, 64),
    "roberta-base": ("query,value", 2, 1, 64),
    "gpt2": ("c_attn,c_proj,c_fc", 4, 3, 64),
    "llama-3-8b": ("*_proj", 7, 1, 128),
    "qwen2.5-7b": ("*_proj", 7, 1, 128),
    "vit-base": ("*layer*", 6, 1, 64),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_by_name(name):
    from transformers import AutoConfig, AutoModel

    from metalora.zoo import architectures

    patterns, roles, parts, head = FAMILIES[name]
    sizes = {key: value for key, value in architectures()[name].items() if key != "hub"}
    layers = {"n_layer": 2} if name == "gpt2" else {"num_hidden_layers": 2}
    with torch.device("meta"):
        net = AutoModel.from_config(AutoConfig.for_model(**{**sizes, **layers}))
    found = find_targets(net, patterns)
    assert {target.layer for target in found} == {(0,), (1,)} and len({target.role for target in found}) == roles
    assert max(target.parts for target in found) == parts and {target.head_dim for target in found} == {head}
    config = AdapterConfig("metatt-5d", 8, targets=patterns)
    width = net.config.hidden_size
    placed = build_layout(found, resolve(config))
    assert placed.params["G2"].shape == (8, 2, 8) and placed.params["G3"].shape[1] == roles + parts - 1
    assert {one.shape[0] for key, one in placed.params.items() if key.startswith("G1")} >= {width}


def test_a_vit_of_timm_has_fused_projections():
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=3)
    found = find_targets(net, "blocks*")
    assert {(t.role, t.parts, t.head_dim) for t in found if "attn" in t.path} == {
        ("blocks.*.attn.qkv", 3, 64), ("blocks.*.attn.proj", 1, 64),
    }  # fmt: skip
    adapter = attach(net.eval(), AdapterConfig("metatt-4d", 4, targets="blocks*", init="no-no-no-no"))
    assert adapter.factors["G3"].shape == (4, 6, 4)
    x = torch.randn(1, 3, 224, 224)
    want = net(x)
    merge(net)
    torch.testing.assert_close(net(x), want, rtol=1e-3, atol=1e-4)
