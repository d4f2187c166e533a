"""Methods on digits: as many of them as the configuration gives, and what they are then."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, detach, load, merge, save, sweep
from metalora.methods.records import Tensorised
from metalora.methods.registry import METHODS, get_method
from oracles.dense import _gate
from support.adapters import assert_close, randomise


def made(method, digits, rank=2, size=(24, 24), **changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*size)).double().eval()
    adapter = attach(model, AdapterConfig(method, rank, targets=("0",), digits=digits, **changes))
    randomise(adapter)
    return model, adapter


def test_another_number_of_digits_of_a_train():
    """TT-LoRA's [2, 3, 4 | 4, 6] and one core a digit."""
    model, adapter = made("tt-lora", {"in": "2 3 4", "out": "4 6"})
    cores = [core.detach() for core in adapter.factors.values()]
    assert [core.shape for core in cores] == [(2, 2), (2, 3, 2), (2, 4, 2), (2, 4, 2), (2, 6)]
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.tensordot(whole, core, 1)
    assert_close(adapter.delta("0").T, whole.reshape(24, 24))


def test_another_number_of_digits_of_loretta():
    model, adapter = made("loretta-rep", {"in": "4 6"})
    assert list(adapter.factors) == [f"0.{name}" for name in ("A1", "A2", "A3", "B1", "B2", "B3", "B4")]


@pytest.mark.parametrize("digits, size", [("2 3 2 2", (24, 24)), ("6 4", (24, 24)), ("2 3 2 2", (24, 36))])
def test_gates_on_any_number_of_digits(digits, size):
    """QuanTA: pair after pair on the unit vectors, less the same at the start; rectangular weights need no padding."""
    out = digits if size[1] == 24 else "3 3 2 2"
    model, adapter = made("quanta", {"in": digits, "out": out}, size=size)
    ins, f = [int(d) for d in digits.split()], {k[2:]: v.detach() for k, v in adapter.factors.items()}

    def circuit(change):
        x = torch.eye(24, dtype=torch.float64).reshape(24, *ins)
        for j in range(1, len(ins)):
            for k in range(j + 1, len(ins) + 1):
                x = _gate(x, f[f"T{j}{k}_0"] + change * f[f"T{j}{k}"], j, k)
        return x.flatten(1)

    delta = circuit(1) - circuit(0)
    assert_close(adapter.delta("0").detach().T, delta)
    x = torch.randn(3, 24, dtype=torch.float64)
    want = model[0].base(x) + x @ delta
    assert_close(model(x), want)
    merge(model)
    assert_close(model(x), want)


@pytest.mark.parametrize(
    "digits, message",
    [
        ({"in": "4 6", "out": "2 3 4"}, "expected as many of each"),
        ({"in": "24", "out": "24"}, "1 digits, expected 2 to 6"),
    ],
)
def test_digits_that_cannot_be(digits, message):
    with pytest.raises(ValueError, match=message):
        made("quanta", digits)


@pytest.mark.parametrize(
    "method, axis, folds",
    [("lora", "in", "nothing"), ("tt-lora", "hidden", "in, out"), ("metatt-5d", "out", "nothing")],
)
def test_digits_of_an_axis_that_is_not_folded(method, axis, folds):
    with pytest.raises(ValueError, match=f"{method!r}: digits of {axis!r}, it folds {folds}"):
        made(method, {axis: "4 6"})


def test_a_method_of_a_fixed_number_of_digits_says_so():
    with pytest.raises(ValueError, match="has 3 digits, expected 2"):
        made("lokr", {"in": "2 3 4"})


def test_gates_have_no_rank():
    assert get_method("quanta").rank_bonds == ()
    with pytest.raises(ValueError, match="for the bonds"):
        made("quanta", {}, rank=(2, 2))
    with pytest.raises(ValueError, match="sweep: 'quanta' has no two neighbouring factors"):
        sweep(made("quanta", {})[0], rank=1)


def test_a_small_change_of_the_gates_outlives_half_precision(tmp_path):
    """Gates of order one that have moved by a thousandth: what is saved is the move."""
    model, adapter = made("quanta", {})
    with torch.no_grad():
        for change in adapter.learned.values():
            change.mul_(1e-3)
    want = adapter.delta("0").detach()
    save(model, tmp_path / "a", dtype=torch.float16)
    detach(model)
    got = load(model, tmp_path / "a").delta("0").detach()
    assert 0 < (got - want).norm() < 1e-3 * want.norm()


def test_the_price_of_gates():
    """A position pays in x (the other sides of its two digits) for each gate, and again for the start."""
    from metalora.cost import summarise

    config = AdapterConfig("quanta", targets=("0",), digits={"in": "4 4 4", "out": "4 4 4"})
    found = summarise(nn.Sequential(nn.Linear(64, 64, device="meta")), config)
    assert found.multiply_adds == 2 * 3 * 64 * 16 and found.base_multiply_adds == 64 * 64


def test_both_trains_of_a_bottleneck_are_swept():
    """Ranks that the trains do not need fall without a change of the output."""
    model, adapter = made("loretta-adp", {"hidden": "2 2"}, rank=2)
    x, before = torch.randn(5, 24, dtype=torch.float64), adapter.num_params()
    with torch.no_grad():
        for key, core in adapter.factors.items():
            if key[2] in "DU":
                core.copy_(core * torch.tensor([1.0, 0.0]) if key[2:] not in ("D5", "U5") else core)
    want = model(x)
    report = sweep(model, rank=1)
    assert_close(model(x), want)
    assert set(report.after.values()) == {1} and adapter.num_params() < before


def test_refolded_methods_are_the_registered_ones_at_their_own_digits():
    for method in METHODS.values():
        tensorised = method.record(Tensorised)
        if tensorised is not None:
            counts = {axis: len(modes) for axis, modes in method.network.folds.items()}
            assert tensorised.with_axis_factors(counts) == method
