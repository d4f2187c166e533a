"""Ten laws over registry x layer kinds x {generated, constant}: float64, 1e-10, oracles sharing no code with us."""

import copy
import functools
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import metalora
from metalora import (
    AdapterConfig,
    ConditionConfig,
    attach,
    count_params,
    detach,
    find_targets,
    load,
    merge,
    save,
    unmerge,
)
from metalora.methods.registry import METHODS
from metalora.zoo import load_model
from oracles.cases import (
    BODY,
    CASES,
    SOURCES,
    attached,
    conv_net,
    factors_of,
    images,
    oracle_delta,
    oracle_shift,
    randomise,
)
from oracles.dense import BOTTLENECKS, DENSE
from oracles.layers import LAYERS, apply

TOLERANCE = dict(rtol=1e-10, atol=1e-10)
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "counts.json").read_text())
QUERY_VALUE = {"r": ("query", "value"), "l": ("q_proj", "v_proj")}
EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
EVERY_CELL = pytest.mark.every_cell  # case x layer; conftest.py says which
EVERY_DELTA = pytest.mark.every_cell(delta=True)
EVERY_BOTTLENECK = pytest.mark.every_cell(delta=False)
EVERY_SIZE = pytest.mark.parametrize("size", ("few", "many", "many, cut"))
BOTTLENECK_CASES = {name: case for name, case in CASES.items() if not case.has_delta}
GENERATED = {name: case for name, case in CASES.items() if case.per_example}
STATIC = {name: case for name, case in CASES.items() if not case.per_example}


def close(got, want):
    torch.testing.assert_close(got, want, **TOLERANCE)


def test_the_tables_cover_the_registry():
    """A method that nobody tests is the first thing to go wrong."""
    assert {case.method for case in CASES.values()} == {*DENSE, *BOTTLENECKS} == set(METHODS) == set(metalora.methods())
    assert {row["method"] for row in GOLDEN} == set(METHODS)
    assert {case.method for case in GENERATED.values()} >= {m.name for m in METHODS.values() if m.generated}


# ---- 1 starts as the base -------------------------------------------------------------------------------------------
@EVERY_CELL
def test_1_starts_as_the_base(case, layer):
    model, adapter, x, condition = attached(case, layer, random=False)
    assert all(method.starts_as_base for method in METHODS.values())
    with adapter.disabled():
        base = model(x)
    assert torch.equal(model(x, **condition), base)
    assert torch.equal(base, apply(model[0].base, x, model[0].base.weight))


# ---- 2 forward = base + dense Delta W -------------------------------------------------------------------------------
@EVERY_SIZE
@EVERY_DELTA
def test_2_forward_is_base_plus_dense_delta(case, layer, size):
    model, adapter, x, condition = attached(case, layer, size)
    got = model(x, **condition)
    base = model[0].base
    for i in range(len(x)):
        dense = oracle_delta(case, layer, adapter, condition.get("condition"), i)
        assert dense.abs().max() > 1e-3
        shift = oracle_shift(case, layer, adapter, condition.get("condition"), i)
        close(got[i : i + 1], apply(base, x[i : i + 1], base.weight + dense) + shift)


@pytest.mark.parametrize("kind", ("linear", "conv1d", "conv2d"))
def test_2_the_sizes_run_both_paths(kind):
    """The base itself runs beside the cut, and does not run where W + Delta W is formed."""
    for size, want in (("many, cut", 0), ("many", 1)):
        model, adapter, x, _ = attached(CASES["lora"], LAYERS[kind], size)
        ran, layer = [], model[0]
        layer.apply_weight = lambda x, weight, ran=ran, plain=layer.apply_weight: ran.append(1) or plain(x, weight)
        with torch.no_grad():
            model(x)
        assert len(ran) == want


@EVERY_BOTTLENECK
def test_2_a_bottleneck_is_a_function_of_the_output(case, layer):
    model, adapter, x, condition = attached(case, layer, "many")
    got = model(x, **condition)
    axis = {"conv1d": 1, "conv2d": 1}.get(layer.kind, -1)
    for i in range(len(x)):
        z = model[0].base(x[i : i + 1]).movedim(axis, -1)
        factors = factors_of(adapter, "0", condition.get("condition"), i)
        want = z + (case.alpha or 1.0) * BOTTLENECKS[case.method](z, **factors)
        assert (want - z).abs().max() > 1e-3
        close(got[i : i + 1], want.movedim(-1, axis))


@EVERY_DELTA
def test_2_delta_is_the_oracle_in_the_base_layout(case, layer):
    model, adapter, x, condition = attached(case, layer)
    want = torch.stack([oracle_delta(case, layer, adapter, condition.get("condition"), i) for i in range(len(x))])
    got = adapter.delta("0", **condition)
    close(got, want if case.per_example else want[0])
    assert got.shape[-model[0].base.weight.ndim :] == model[0].base.weight.shape


# ---- 3 merge = forward; unmerge restores the bits -------------------------------------------------------------------
@EVERY_SIZE
@EVERY_DELTA
def test_3_merge_is_forward_and_unmerge_restores_the_bits(case, layer, size):
    model, adapter, x, condition = attached(case, layer, size)
    snapshot = {"condition": condition["condition"].mean()} if condition else {}
    weight, before = model[0].base.weight.clone(), model(x, **snapshot)
    if model[0].biases and model[0].base.bias is None:
        with pytest.raises(ValueError, match="target '0' has no bias that .* could be added to"):
            merge(model, **snapshot)
        assert torch.equal(model[0].base.weight, weight)
        return
    merge(model, **snapshot)
    close(model(x), before)
    assert not torch.equal(model[0].base.weight, weight)
    unmerge(model)
    assert torch.equal(model[0].base.weight, weight)
    assert torch.equal(model(x, **snapshot), before)


@pytest.mark.parametrize("case", BOTTLENECK_CASES.values(), ids=BOTTLENECK_CASES)
def test_3_a_bottleneck_says_that_it_is_not_mergeable(case, tmp_path):
    model, adapter, x, condition = attached(case, LAYERS["linear"])
    one = condition["condition"][0] if condition else None
    before = model(x, **condition)
    for call in (
        lambda: merge(model, one),
        lambda: adapter.delta("0", one),
        lambda: adapter.export_lora(tmp_path / "lora", one),
    ):
        with pytest.raises(ValueError, match="target '0'.*(no Delta W|no LoRA)"):
            call()
    assert torch.equal(model(x, **condition), before) and not any(tmp_path.iterdir())


FITTING = {
    f"{name}-{kind}": (case, layer)
    for name, case in GENERATED.items()
    for kind, layer in LAYERS.items()
    if case.fits(layer)
}
WITH_DELTA = {name: case for name, case in GENERATED.items() if case.has_delta}


@pytest.mark.parametrize("case", WITH_DELTA.values(), ids=WITH_DELTA)
def test_3_a_generated_adapter_is_merged_with_one_condition_only(case):
    model, adapter, x, condition = attached(case, LAYERS["linear"])
    weight = model[0].base.weight.clone()
    for wrong, message in ((None, "pass condition="), (condition["condition"], "for 4 examples")):
        with pytest.raises(ValueError, match=message):
            merge(model, wrong)
        assert torch.equal(model[0].base.weight, weight) and not adapter.merged


# ---- 4 save -> load -------------------------------------------------------------------------------------------------
@EVERY_CELL
def test_4_save_load_is_bit_equal_and_holds_the_declared_parameters(case, layer, tmp_path):
    model, adapter, x, condition = attached(case, layer)
    fresh = copy.deepcopy(model)
    detach(fresh)
    save(model, tmp_path / "adapter")
    other = load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x, **condition), model(x, **condition))
    if case.per_example:
        assert torch.equal(case.condition(other, 3, 1).vector(), case.condition(adapter, 3, 1).vector())
    net = ["trunk.weight", "trunk.bias", "head.weight", "head.bias"] + ["embedding"] * (case.heads == "shared")
    declared = {f"factors/{key}" for key, one in adapter.layout.params.items() if not one.frozen}
    declared |= {f"conditioner/mapping_net.{p}" for p in net} if case.generated else set()
    buffers = {"conditioner/mean", "conditioner/std"} if case.generated else set()
    with safe_open(tmp_path / "adapter", "pt") as file:
        assert set(file.keys()) == declared | buffers
        assert sum(file.get_tensor(key).numel() for key in declared) == adapter.num_params()


# ---- 5 gradients ----------------------------------------------------------------------------------------------------
def step(model, optimiser, x, target, condition):
    """One step; the parameters that got a gradient that is not zero."""
    optimiser.zero_grad()
    (model(x, **condition()) - target).square().sum().backward()
    optimiser.step()
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("optimiser", (torch.optim.SGD, torch.optim.Adam), ids=("sgd", "adam"))
@EVERY_CELL
def test_5_gradients_reach_every_learned_number_and_no_base_parameter(case, layer, optimiser):
    model, adapter, x, condition = attached(case, layer, "many", random=False)
    base = {n: p.clone() for n, p in model[0].base.named_parameters()}
    make = (lambda: {"condition": case.condition(adapter, len(x), 1)}) if case.per_example else dict
    target = torch.randn_like(model(x, **make()))
    optimiser = optimiser(adapter.parameters(), lr=1e-3)
    reached = step(model, optimiser, x, target, make)
    assert any(".owned." in name for name in reached)
    for _ in range(2):
        reached |= step(model, optimiser, x, target, make)
    assert reached == {n for n, _ in model.named_parameters() if ".adapter." in n}
    assert {id(p) for n, p in model.named_parameters() if n in reached} == {id(p) for p in adapter.parameters()}
    for name, parameter in model[0].base.named_parameters():
        assert parameter.grad is None and torch.equal(parameter, base[name])


@pytest.mark.parametrize("method", METHODS)
def test_5_batch_norm_of_a_training_model_keeps_its_very_bits(method):
    blocks = (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2))
    model = nn.Sequential(nn.Sequential(*blocks), nn.Flatten(), nn.Linear(36, 3))
    model.double()[0][0][1].running_mean.normal_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    condition = ConditionConfig(stages=("0.0",))
    example = torch.randn(4, 4, 7, 7, dtype=torch.float64)
    options = dict(rank=2, experts=2, targets="conv", head_dim=2, condition=condition)
    adapter = attach(model, AdapterConfig(method=method, **options), example=example)
    model.train()
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimiser, example, 1.0, dict)
    assert all(p.grad is None for n, p in model.named_parameters() if ".adapter." not in n)
    detach(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()) and after.keys() == before.keys()


def test_5_instance_norm_of_a_training_model_keeps_its_very_bits():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True))
    attach(model, AdapterConfig(rank=2, targets="conv"))
    before = model[1].running_mean.clone()
    model.train()(torch.randn(2, 3, 6, 6))
    assert torch.equal(model[1].running_mean, before)


# ---- 6 a mixed batch = each alone -----------------------------------------------------------------------------------
@EVERY_SIZE
@EVERY_CELL
def test_6_a_mixed_batch_is_each_example_alone(case, layer, size):
    model, adapter, x, condition = attached(case, layer, size)
    got = model(x, **condition)
    pick = (lambda i: {"condition": condition["condition"][i]}) if condition else (lambda i: {})
    for i in range(len(x)):
        close(got[i : i + 1], model(x[i : i + 1], **pick(i)))
    order = torch.tensor([2, 0, 3, 1])
    close(model(x[order], **pick(order)), got[order])


@pytest.mark.parametrize("case, layer", FITTING.values(), ids=FITTING)
def test_6_one_condition_serves_a_whole_batch(case, layer):
    model, adapter, x, condition = attached(case, layer)
    one = condition["condition"][1]
    four = one.stack([one] * len(x))
    close(model(x, condition=one), model(x, condition=four))


# ---- 7 export as a plain LoRA pair ----------------------------------------------------------------------------------
def pair(model, condition):
    """(Left, Right) of target "0" for the first condition, and its values."""
    values = condition["condition"][0].values if condition else None
    return [t.detach() for t in model[0].pair(values)]


@EVERY_DELTA
def test_7_the_pair_reproduces_delta(case, layer):
    model, adapter, x, condition = attached(case, layer)
    left, right = pair(model, condition)
    assert len(left) == len(right) == model[0].cut.rank
    dense = sum(left[k][..., None] * right[k] for k in range(len(left)))  # in x [kernel] x out
    dense = dense if layer.kind in ("embedding", "conv1d_gpt2") else dense.movedim(-1, 0)
    close(dense, oracle_delta(case, layer, adapter, condition.get("condition"), 0))


# ---- 8 torch.compile ------------------------------------------------------------------------------------------------
COMPILED = {
    name: CASES[name]
    for name in (
        "lora",
        "lora-A",
        "multi-lora",
        "moe-lora-g",
        "metalora-cp-c",
        "metalora-tr-C",
        "metalora-square-C",
        "metalora-tr",
        "vera",
        "lokr",
        "quanta",
        "quanta-T13",
        "loretta-adp-U2",
        "cara",
        "moe-lora-task-tasks",
        "tenslora-att-qkv",
        "mtl-lora-tasks",
        "mtlora-tasks",
    )
}


@pytest.mark.parametrize("kind", ("linear", "conv2d"))
@pytest.mark.parametrize("case", COMPILED.values(), ids=COMPILED)
def test_8_compiled_is_eager_and_new_values_do_not_recompile(case, kind):
    model, adapter, x, condition = attached(case, LAYERS[kind])
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    close(compiled(x, **condition), model(x, **condition))
    other, y = {"condition": case.condition(adapter, len(x))} if condition else {}, layer_input(kind)
    close(compiled(y, **other), model(y, **other))
    assert len(graphs) == 1


def layer_input(kind):
    return LAYERS[kind].inputs()


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_8_compiled_is_eager_when_the_condition_is_made_inside(source):
    model, x = conv_net(), images()
    config = AdapterConfig(method="metalora-tr", rank=2, targets=BODY, condition=ConditionConfig(**source, hidden=5))
    randomise(attach(model, config, example=x))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    # 1e-6: features are float32 statistics, which the compiler may sum in another order
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)


# ---- 9 copies -------------------------------------------------------------------------------------------------------
COPY = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model))}


@pytest.mark.parametrize("copied", COPY.values(), ids=COPY)
@EVERY_CASE
def test_9_copies_are_independent(case, copied):
    model, adapter, x, _ = attached(case, LAYERS["conv2d"])

    def run(model, adapter):
        return model(x, **({"condition": case.condition(adapter, len(x), 1)} if case.per_example else {}))

    other = copied(model)
    twin = metalora.adapter_of(other)
    first = run(model, adapter)
    assert twin is not adapter and torch.equal(run(other, twin), first)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
    randomise(twin)
    assert torch.equal(run(model, adapter), first)
    second = run(other, twin)
    assert not torch.equal(second, first)
    randomise(adapter)
    assert torch.equal(run(other, twin), second)
    detach(other)
    assert torch.equal(other(x), apply(other[0], x, other[0].weight)) and metalora.adapter_of(model) is adapter
    assert not torch.equal(run(model, adapter), other(x))


@pytest.mark.parametrize("copied", COPY.values(), ids=COPY)
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_9_the_hooks_of_a_copy_use_the_adapter_of_the_copy(source, copied):
    model, x = conv_net(), images()
    config = AdapterConfig(method="metalora-cp", rank=2, targets=BODY, condition=ConditionConfig(**source, hidden=5))
    adapter = attach(model, config, example=x)
    randomise(adapter)
    other = copied(model)
    twin = metalora.adapter_of(other)
    first = model(x)
    assert torch.equal(other(x), first)
    with torch.no_grad():
        twin.conditioner.mapping_net.head.bias.add_(1.0)
    assert torch.equal(model(x), first) and not torch.equal(other(x), first)
    assert twin.active is None and not twin.recorder.active and adapter.active is None
    detach(other)
    assert not other._forward_pre_hooks and not other._forward_hooks and model._forward_pre_hooks


# ---- 10 counts ------------------------------------------------------------------------------------------------------
@EVERY_CELL
def test_10_num_params_is_the_closed_form(case, layer):
    model, adapter, x, _ = attached(case, layer)
    config = case.config()
    [target] = find_targets(layer.base(), ("0",))
    assert adapter.num_params() == count_params(config, [target], 7) == sum(p.numel() for p in adapter.parameters())
    assert adapter.num_params() == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(case.rank, int):
        sizes = target.sizes
        kernel = sizes.get("kh", 1) * sizes.get("kw", 1)
        numbers = dict(I=sizes["in"], O=sizes["out"], K=kernel, R=case.rank, N=config.experts, L=1, M=1, T=case.tasks)
        numbers |= dict(H=sizes["out"] // config.head_dim, J=config.head_dim)
        numbers |= adapter.layout.targets["0"].sizes
        method = METHODS[case.method]
        [method] = [part for part in method.parts if part.takes(target.heads)] or [method]
        assert count_params(config, [target]) == eval(method.count, numbers)
        if case.has_delta:
            assert model[0].cut.rank <= eval(method.export, numbers)


@pytest.mark.parametrize(
    "row", [r for r in GOLDEN if "layer" in r], ids=lambda row: f"{row['model']}-{row['method']}-r{row['rank']}"
)
def test_10_golden_counts(row):
    """Numbers worked out by hand, and those that the papers print."""
    made = nn.Linear(row["in"], row["out"], device="meta")
    if row["layer"] == "conv2d":
        made = nn.Conv2d(row["in"], row["out"], row["kernel"], device="meta")
    model = nn.Sequential(*[copy.deepcopy(made) for _ in range(row["targets"])])
    constant = ConditionConfig(scope="constant")
    config = AdapterConfig(
        method=row["method"], rank=row["rank"], experts=row.get("experts", 4), targets=("*",), condition=constant
    )
    assert count_params(config, find_targets(model, ("*",))) == row["params"]
    if row["in"] < 4096:  # the factors of the largest would be made on the CPU
        assert attach(model, config).num_params() == row["params"]


@functools.cache
def architecture(name):
    return load_model(name, weights=False)


@pytest.mark.parametrize(
    "row",
    [r for r in GOLDEN if "layer" not in r],
    ids=lambda row: f"{row['model']}-{row['method']}-r{row['rank']}-{row.get('tasks', 1)}",
)
def test_10_golden_counts_of_shared_networks(row):
    """Well-known transformers (query and value, if not said), from their sizes alone: what the papers print."""
    options = {key: row[key] for key in ("tasks", "widths", "experts", "digits", "scale", "frozen") if key in row}
    rank = tuple(row["rank"]) if isinstance(row["rank"], list) else row["rank"]
    config = AdapterConfig(row["method"], rank, targets=row.get("targets") or QUERY_VALUE[row["model"][0]], **options)
    assert count_params(config, find_targets(architecture(row["model"]), config.targets)) == row["params"]
