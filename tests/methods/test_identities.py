"""The methods as special cases of one another: factors copied from one into the other give the same outputs."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from metalora import AdapterConfig, Condition, ConditionConfig, attach
from support.layers import LAYERS

SCALARS = torch.tensor([0.5, -1.5], dtype=torch.float64)  # one number per module of a Multi-LoRA


@dataclass(frozen=True)
class Identity:
    """`special` with any factors is `general` with the factors that `copy` makes of them."""

    special: tuple[str, int]
    general: tuple[str, int]
    copy: Callable[[dict], dict]


def merge_values(A):
    """(n, [kernel], in, r) -> ([kernel], in, (n r))."""
    return A.movedim(0, -2).flatten(-2)


def ring(A, B, C):
    """A[(r0 r1)], B[(r2 r1)], core C.T (x) I."""
    kron = torch.kron(C.T.contiguous(), torch.eye(A.shape[-1], dtype=A.dtype))
    return dict(A=merge_values(A), C=kron, B=B.permute(2, 0, 1).flatten(0, 1))


IDENTITIES = {
    "LoRA = CP with c = 1": Identity(
        ("lora", 3), ("metalora-cp", 3), lambda f: dict(A=f["A"], c=torch.ones(3), B=f["B"])
    ),
    "LoRA = identity core": Identity(
        ("lora", 3), ("metalora-square", 3), lambda f: dict(A=f["A"], C=torch.eye(3), B=f["B"])
    ),
    "Conv-LoRA = LoRA": Identity(("conv-lora", 3), ("lora", 3), dict),
    "Multi-LoRA = LoRA of rank N r": Identity(
        ("multi-lora", 2),
        ("lora", 4),
        lambda f: dict(A=merge_values(f["A"]), B=(f["B"] * f["s"][:, None]).flatten(0, 1)),
    ),
    "Multi-LoRA with scalar s = constant block-diagonal core": Identity(
        ("multi-lora", 2),
        ("metalora-square", 4),
        lambda f: dict(
            A=merge_values(f["A"]),
            B=f["B"].flatten(0, 1),
            C=torch.block_diag(*[v * torch.eye(2) for v in f["s"][:, 0]]),
        ),
    ),
    "MoE = tied diagonal: CP with c the gate repeated": Identity(
        ("moe-lora", 4),
        ("metalora-cp", 4),
        lambda f: dict(
            A=merge_values(f["A"]), B=f["B"].flatten(0, 1), c=(f["g"].exp() / f["g"].exp().sum()).repeat_interleave(2)
        ),
    ),
    "CP = diagonal of the square core": Identity(
        ("metalora-cp", 3), ("metalora-square", 3), lambda f: dict(A=f["A"], C=f["c"].diag(), B=f["B"])
    ),
    "TR = square core C (x) I of rank R^2": Identity(("metalora-tr", 2), ("metalora-square", 4), lambda f: ring(**f)),
    "TR with C = e0 e0 is LoRA of rank R": Identity(
        ("metalora-tr", 2), ("lora", 2), lambda f: dict(A=f["A"][0], B=f["B"][:, :, 0])
    ),
}


def build(layer, method, rank, base, scope="constant"):
    model = layer.base()
    model.load_state_dict(base.state_dict())
    condition = ConditionConfig(scope=scope, source="tensor", feature_size=2)
    return model, attach(model, AdapterConfig(method=method, rank=rank, experts=2, targets=("0",), condition=condition))


def fill(adapter, values):
    with torch.no_grad():
        for name, value in values.items():
            assert adapter.factors[f"0.{name}"].shape == value.shape
            adapter.factors[f"0.{name}"].copy_(value)


def drawn(adapter, name):
    """Random factors, of the form that the identity speaks of."""
    values = {k.removeprefix("0."): torch.randn_like(v) for k, v in adapter.factors.items()}
    if "scalar s" in name:
        values["s"] = SCALARS[:, None].expand_as(values["s"]).clone()
    if "e0 e0" in name:
        values["C"] = torch.zeros(2, 2, dtype=torch.float64)
        values["C"][0, 0] = 1
    return values


@pytest.mark.parametrize("layer", ("linear", "conv2d", "embedding"))
@pytest.mark.parametrize("name", IDENTITIES)
def test_identity(name, layer):
    identity, layer = IDENTITIES[name], LAYERS[layer]
    base = layer.base()
    (special, one), (general, two) = (build(layer, *m, base) for m in (identity.special, identity.general))
    values = drawn(one, name)
    fill(one, values)
    fill(two, identity.copy(values))
    x = layer.inputs("many")
    torch.testing.assert_close(special(x), general(x), rtol=1e-10, atol=1e-10)
    assert not torch.equal(special(x), base(x))


PER_EXAMPLE = (
    "CP = diagonal of the square core",
    "TR = square core C (x) I of rank R^2",
    "MoE = tied diagonal: CP with c the gate repeated",
)


@pytest.mark.parametrize("size", ("few", "many"))
@pytest.mark.parametrize("layer", ("linear", "conv2d"))
@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_identity_per_example(name, layer, size):
    """The same with a generated core that differs from example to example."""
    identity, layer = IDENTITIES[name], LAYERS[layer]
    base, x = layer.base(), layer.inputs(size)
    (special, one), (general, two) = (build(layer, *m, base, "sample") for m in (identity.special, identity.general))
    shared = drawn(one, name)
    [made] = one.generated
    examples = [shared | {made: torch.randn_like(shared[made])} for _ in x]
    copies = [identity.copy(values) for values in examples]
    fill(one, shared)
    fill(two, copies[0])
    outputs = [
        model(
            x,
            condition=Condition(
                {f"0.{f}": torch.stack([v[f] for v in values])}, torch.zeros(len(x), 2), torch.tensor(0.0)
            ),
        )
        for model, f, values in ((special, made, examples), (general, two.generated[0], copies))
    ]
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-10)


SAME_NETWORKS = {  # two names of one network, factor by factor in order
    "TensLoRA Att_QKV_Depth as a train = MetaTT-5D": ("tenslora-att-qkv-depth-tt", "metatt-5d"),
    "FacT-TT = LoTR": ("fact-tt", "lotr"),
    "AdaLoRA = MetaLoRA-CP": ("adalora", "metalora-cp"),
    "rsLoRA = LoRA": ("rslora", "lora"),
}


@pytest.mark.parametrize("names", SAME_NETWORKS.values(), ids=SAME_NETWORKS)
def test_two_names_of_one_network(names):
    base = LAYERS["linear"].base()
    models = [LAYERS["linear"].base() for _ in names]
    for one in models:
        one.load_state_dict(base.state_dict())
    constant = ConditionConfig(scope="constant")
    adapters = [
        attach(one, AdapterConfig(name, 2, targets=("0",), head_dim=3, condition=constant))
        for one, name in zip(models, names, strict=True)
    ]
    with torch.no_grad():
        for first, second in zip(*(adapter.factors.values() for adapter in adapters), strict=True):
            first.normal_()
            second.copy_(first)
    x = LAYERS["linear"].inputs()
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-12, atol=1e-12)
    assert not torch.equal(models[0](x), base(x))
