"""Official packages: the same factors in, the same forward out. PEFT and LyCORIS, linear layers and convolutions."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, adapter_of, attach
from support.adapters import assert_close, randomise

ALPHA, RANK = 7.0, 2
LAYERS = {
    "linear": (lambda: nn.Linear(24, 12), (5, 24)),
    "conv2d": (lambda: nn.Conv2d(24, 12, 3, stride=2, padding=1), (5, 24, 7, 6)),
}
each_layer = pytest.mark.parametrize("layer", LAYERS)


def ours(method, layer, **changes):
    """(a copy of the base, our adapted model, its random factors by name, an input)."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    base = nn.Sequential(make()).double().eval()
    model = copy.deepcopy(base)
    options = dict(targets=("0",), alpha=ALPHA) | changes
    adapter = attach(model, AdapterConfig(method, **{"rank": RANK} | options))
    randomise(adapter)
    factors = {key.removeprefix("0."): value.detach() for key, value in adapter.factors.items()}
    return base, model, factors, torch.randn(shape, dtype=torch.float64)


def rows(factor):
    """[kernel] in r -> (r, in, *kernel), as their packages store it."""
    return factor.movedim((-1, -2), (0, 1)) if factor.ndim > 2 else factor.T


def flat(factor):
    """(r, in * kernel)"""
    return rows(factor).flatten(1)


def lora(f):
    up = f["B"].T
    return {
        "lora_A.default.weight": rows(f["A"]),
        "lora_B.default.weight": up[..., None, None] if f["A"].ndim > 2 else up,
    }


def loha(f):
    return {"hada_w1_a": f["B1"].T, "hada_w1_b": flat(f["A1"]), "hada_w2_a": f["B2"].T, "hada_w2_b": flat(f["A2"])}


def lokr(f):
    return {"lokr_w1": f["C"].T, "lokr_w2_a": f["B"].T, "lokr_w2_b": flat(f["A"])}


def core(factor):
    """(kh, kw, r of in, r of out) -> (r of out, r of in, kh, kw)"""
    return factor.permute(3, 2, 0, 1)


def loha_tucker(f):
    found = {f"hada_w{k}_{side}": f[f"{'BA'[side == 'b']}{k}"] for k in (1, 2) for side in "ab"}
    found = {name: value if name.endswith("a") else value.T for name, value in found.items()}
    return found | {f"hada_t{k}": core(f[f"M{k}"]) for k in (1, 2)}


def lokr_tucker(f):
    return {"lokr_w1": f["C"].T, "lokr_w2_a": f["B"], "lokr_w2_b": f["A"].T, "lokr_t2": core(f["M"])}


def adalora(f):
    return {"lora_A": f["P"].T, "lora_E": f["E"][:, None], "lora_B": f["Q"].T}


def named(values):
    """PEFT's parameters of an adapter are entries of dictionaries of adapters."""
    return {f"{name}.default": value for name, value in values.items()}


def fill(module, values):
    """Copy the values into the parameters of those names; each must be there, with that many numbers."""
    found = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            assert found[name].numel() == value.numel()
            found[name].copy_(value.reshape(found[name].shape))


# ---- PEFT -----------------------------------------------------------------------------------------------------------
def peft(base, config, values):
    from peft import get_peft_model

    model = get_peft_model(base, config).double().eval()
    fill(model.base_model.model[0], values)
    return model


@each_layer
@pytest.mark.parametrize("method", ("lora", "rslora"))
def test_lora_of_peft(method, layer):
    from peft import LoraConfig

    base, model, f, x = ours(method, layer)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_rslora=method == "rslora")
    assert_close(peft(base, config, lora(f))(x), model(x))


def test_dora_of_peft():
    """PEFT learns the magnitude, here its change is learned; outputs and gradients of the factors agree."""
    from peft import LoraConfig, get_peft_model

    base, model, f, x = ours("dora", "linear")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], use_dora=True)
    theirs = get_peft_model(base, config).double().eval()
    layer = theirs.base_model.model[0]
    left, right = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # (r, in), (out, r)
    magnitude = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        left.copy_(f["A"].T)
        right.copy_(f["B"].T)
        magnitude.add_(f["d"])
    want, got = theirs(x), model(x)
    assert_close(want, got)
    own = dict(adapter_of(model).factors)
    mine = torch.autograd.grad(got.pow(3).sum(), [own["0.A"], own["0.B"], own["0.d"]])
    others = torch.autograd.grad(want.pow(3).sum(), [left, right, magnitude])
    for gradient, other in zip(mine, (others[0].T, others[1].T, others[2]), strict=True):
        assert_close(gradient, other)


@pytest.mark.parametrize("method", ("pissa", "olora"))
def test_starts_from_the_weight_of_peft(method):
    """PEFT subtracts the start from the base and trains the factors; here the base stays and changes are trained.

    The tolerance is that of PEFT's decomposition, which is in float32.
    """
    from peft import LoraConfig, get_peft_model

    base, model, f, x = ours(method, "linear")
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=method)
    theirs = get_peft_model(base.float(), config).double().eval()
    layer = theirs.base_model.model[0]
    left, right = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # (r, in), (out, r)
    assert not torch.allclose(layer.base_layer.weight, model[0].base.weight, atol=1e-3)
    start = (f["A_0"] @ f["B_0"]).T
    torch.testing.assert_close(right @ left, start, rtol=1e-5, atol=1e-5)
    signs = (left * f["A_0"].T).sum(1).sign()  # a pair of singular vectors is determined up to its sign
    with torch.no_grad():
        left += signs[:, None] * f["A"].T
        right += signs * f["B"].T
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-5)


@each_layer
def test_loha_of_peft(layer):
    from peft import LoHaConfig

    base, model, f, x = ours("loha", layer)
    config = LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["0"])
    assert_close(peft(base, config, named(loha(f)))(x), model(x))


def test_tucker_cores_of_peft():
    from peft import LoHaConfig, LoKrConfig

    options = dict(r=RANK, alpha=ALPHA, target_modules=["0"], use_effective_conv2d=True)
    for method, config, values in (
        ("loha-tucker", LoHaConfig(**options), loha_tucker),
        ("lokr-tucker", LoKrConfig(**options), lokr_tucker),
    ):
        base, model, f, x = ours(method, "conv2d")
        assert_close(peft(base, config, named(values(f)))(x), model(x))


@each_layer
def test_lokr_of_peft(layer):
    from peft import LoKrConfig

    base, model, f, x = ours("lokr", layer)
    config = LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["0"])
    assert_close(peft(base, config, named(lokr(f)))(x), model(x))


@each_layer
def test_lokr_with_a_full_second_factor(layer):
    """PEFT's at a rank above half of the factor, at its scale alpha / r; LyCORIS's, whose scale is then one."""
    from peft import LoKrConfig

    base, model, f, x = ours("lokr-full", layer)
    values = {"lokr_w1": f["C"].T, "lokr_w2": f["D"].permute(3, 2, 0, 1) if f["D"].ndim > 2 else f["D"].T}
    config = LoKrConfig(r=8, alpha=8 * ALPHA, target_modules=["0"])
    assert_close(peft(base, config, named(values))(x), model(x))
    modules = pytest.importorskip("lycoris.modules")
    base, model, f, x = ours("lokr-full", layer, alpha=None)
    theirs = modules.lokr.LokrModule("", base[0], 1, 8, ALPHA, full_matrix=True).double().eval()
    fill(theirs, values)
    theirs.apply_to()
    assert_close(base(x), model(x))


@pytest.mark.parametrize("rank", (2, 3, 5, 24))
def test_miss_of_peft(rank):
    """Also where the rank does not divide the width."""
    from peft import MissConfig

    base, model, f, x = ours("miss", "linear", rank=rank, alpha=None)
    config = MissConfig(r=rank, target_modules=["0"])
    assert_close(peft(base, config, {"miss_block.default": f["D"]})(x), model(x))


def test_adalora_of_peft():
    """Its scale is alpha / (r + 1e-5)."""
    from peft import AdaLoraConfig

    base, model, f, x = ours("adalora", "linear", alpha=ALPHA * RANK / (RANK + 1e-5))
    config = AdaLoraConfig(init_r=RANK, target_r=1, lora_alpha=ALPHA, total_step=10, target_modules=["0"])
    assert_close(peft(base, config, named(adalora(f)))(x), model(x))


def test_vera_of_peft():
    """One pair of the largest width for two layers, sliced."""
    from peft import VeraConfig, get_peft_model

    base = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4)).double()
    model = copy.deepcopy(base)
    adapter = attach(model, AdapterConfig("vera", 12, targets=("0", "1"), widths="max_slice"))
    randomise(adapter)
    f = {key: value.detach() for key, value in adapter.factors.items()}
    theirs = get_peft_model(base, VeraConfig(r=12, target_modules=["0", "1"])).double().eval()
    for k, module in enumerate(theirs.base_model.model):
        module.vera_A["default"].data, module.vera_B["default"].data = f["A"].T, f["B"].T
        fill(module, {"vera_lambda_d.default": f[f"{k}.d"], "vera_lambda_b.default": f[f"{k}.b"]})
    x = torch.randn(3, 6, dtype=torch.float64)
    assert_close(theirs(x), model(x))


# ---- LyCORIS --------------------------------------------------------------------------------------------------------
def locon(f):
    up = f["B"].T
    return {"lora_down.weight": rows(f["A"]), "lora_up.weight": up}


def locon_tucker(f):
    return {"lora_down.weight": f["A"].T, "lora_mid.weight": f["M"].permute(3, 2, 0, 1), "lora_up.weight": f["B"].T}


LYCORIS = {  # ours -> module, class, values, layers, options
    "lora": ("locon", "LoConModule", locon, ("linear", "conv2d"), {}),
    "locon-tucker": ("locon", "LoConModule", locon_tucker, ("conv2d",), {"use_tucker": True}),
    "loha": ("loha", "LohaModule", loha, ("linear", "conv2d"), {}),
    "loha-tucker": ("loha", "LohaModule", loha_tucker, ("conv2d",), {"use_tucker": True}),
    "lokr": ("lokr", "LokrModule", lokr, ("linear", "conv2d"), {}),
    "lokr-tucker": ("lokr", "LokrModule", lokr_tucker, ("conv2d",), {"use_tucker": True}),
}


@pytest.mark.parametrize("method, layer", [(m, layer) for m, row in LYCORIS.items() for layer in row[3]])
def test_forward_of_lycoris(method, layer):
    """Forward alone: its merge applies alpha / r twice in LoHa and LoKr."""
    modules = pytest.importorskip("lycoris.modules")
    home, name, values, _, options = LYCORIS[method]
    base, model, f, x = ours(method, layer)
    theirs = getattr(getattr(modules, home), name)("", base[0], 1, RANK, ALPHA, **options).double().eval()
    fill(theirs, values(f))
    theirs.apply_to()
    assert_close(base(x), model(x))
