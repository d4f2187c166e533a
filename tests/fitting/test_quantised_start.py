"""LoftQ next to QLoRA's printed table of NF4 and PEFT's decomposition."""

import copy

import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import nn
from transformers.pytorch_utils import Conv1D

from metalora import AdapterConfig, attach, detach, load, merge, quantise_and_attach, save
from metalora.fitting.normal_float import levels

NF4 = (  # QLoRA (arXiv:2305.14314), appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
TARGETS = ("first", "second")


class Network(nn.Module):
    """Two linear layers: the weight of one has a multiple of 64 numbers, that of the other is stored transposed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(48, 32), Conv1D(27, 32)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


X = torch.randn(16, 48, generator=torch.Generator().manual_seed(1))


def config_of(**fields):
    return AdapterConfig(**{"method": "lora", "rank": 4, "targets": TARGETS} | fields)


def nearest_in_blocks(weight):
    """A weight (out, in) in NF4 and back: number by number, in blocks of 64."""
    numbers = weight.flatten().tolist()
    for start in range(0, len(numbers), 64):
        block = numbers[start : start + 64]
        largest = max(map(abs, block))
        for place, number in enumerate(block):
            numbers[start + place] = largest * min(NF4, key=lambda level: abs(level * largest - number))
    return torch.tensor(numbers).reshape(weight.shape)


def loftq(weight, rank, iterations):
    """Q (out, in) and the product of A and B, of the best turn that PEFT's `loftq_init` takes."""
    residual, turns = weight, []
    for _ in range(iterations):
        quantised = nearest_in_blocks(residual)
        output = _low_rank_decomposition(weight - quantised, reduced_rank=rank)
        turns.append((quantised, output["L"] @ output["R"]))
        residual = weight - turns[-1][1]
    return min(turns, key=lambda turn: (weight - turn[0] - turn[1]).norm())


def weights(model):
    """Path -> weight (out, in) of the base, quantised or not."""
    found = {}
    for path in TARGETS:
        layer = model.get_submodule(path)
        base = getattr(layer, "base", layer)
        found[path] = base.weight.detach().T.clone() if isinstance(base, Conv1D) else base.weight.detach().clone()
    return found


def delta(adapter, path):
    """Delta W (out, in) of a target."""
    return adapter.delta(path).detach().T if path == "second" else adapter.delta(path).detach()


def test_nf4_has_the_printed_levels():
    torch.testing.assert_close(levels(4), torch.tensor(NF4, dtype=torch.float64), rtol=0, atol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_levels_of_other_bits(bits):
    table = levels(bits)
    assert len(table) == 2**bits and (table.diff() > 0).all() and 0 in table and table[0] == -1 and table[-1] == 1


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"alpha": 8.0}, {"method": "rslora", "alpha": 2.0}], ids=str)
def test_base_and_adapter_are_those_of_peft(fields, iterations):
    model, before = Network(), weights(Network())
    adapter = quantise_and_attach(model, config_of(**fields), iterations=iterations)
    for path, weight in before.items():
        quantised, product = loftq(weight, 4, iterations)
        torch.testing.assert_close(weights(model)[path], quantised)
        torch.testing.assert_close(delta(adapter, path), product, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
@torch.no_grad()
def test_the_error_falls_below_that_of_quantised_weights(bits):
    errors, outputs, plain = [], [], []
    for iterations in (1, 2, 5):
        model, before = Network(), weights(Network())
        adapter = quantise_and_attach(model, config_of(), bits=bits, iterations=iterations)
        squares = [(before[path] - weights(model)[path] - delta(adapter, path)).square().sum() for path in TARGETS]
        errors.append(float(sum(squares)))
        outputs.append(float((model(X) - Network()(X)).norm()))
        if iterations == 1:  # the base is then simply the quantised one
            plain = [float(sum((before[path] - weights(model)[path]).square().sum() for path in TARGETS))]
            with adapter.disabled():
                plain.append(float((model(X) - Network()(X)).norm()))
    assert errors[0] < 0.8 * plain[0] and outputs[0] < plain[1]
    assert errors[2] <= errors[1] <= errors[0] and (bits == 2 or errors[1] < errors[0])


def test_rounding_to_the_dtype_of_the_base_is_made_up_for():
    model = Network().bfloat16()
    before = weights(model)
    adapter = quantise_and_attach(model, config_of(rank={"r": 27}, targets="second"), bits=8)
    quantised = weights(model)["second"]
    assert quantised.dtype == torch.bfloat16
    # of full rank, so that nothing but the rounding of float32 is left
    sum_of_both = quantised.float() + delta(adapter, "second").float()
    torch.testing.assert_close(sum_of_both, before["second"].float(), rtol=0, atol=1e-6)


def test_files_need_the_quantised_base(tmp_path):
    model = Network()
    adapter = quantise_and_attach(model, config_of(alpha=8.0), iterations=2)
    for factor in adapter.learned.values():
        assert factor.requires_grad
        factor.data += 0.01
    save(model, tmp_path / "adapter")
    with pytest.raises(ValueError, match="base weights are not those"):
        load(Network(), tmp_path / "adapter")
    again = Network()
    quantise_and_attach(again, config_of(alpha=8.0), iterations=2)
    detach(again)
    load(again, tmp_path / "adapter")
    assert torch.equal(again(X), model(X))
    expected = model(X)
    merge(model)
    torch.testing.assert_close(model(X), expected)


class Tied(Network):
    """The first weight has a second name."""

    def __init__(self):
        super().__init__()
        self.other = nn.Embedding(32, 48)
        self.other.weight = self.first.weight


def quantised_already():
    model = Network()
    quantise_and_attach(model, config_of())
    detach(model)
    return model


def with_nan():
    model = Network()
    model.second.weight.data[0, 0] = torch.nan
    return model


def convolution():
    return nn.ModuleDict({"first": nn.Conv2d(3, 4, 3)})


REFUSED = {
    "another method": (Network, {"method": "metatt-4d"}, {}, "method 'metatt-4d', expected 'lora' or 'rslora'"),
    "a mechanism": (Network, {"method": "dora"}, {}, "method 'dora', expected"),
    "a start": (Network, {"init": "pissa"}, {}, "init='pissa', expected none"),
    "init by factor": (Network, {"init": {"A": "normal"}}, {}, "expected none"),
    "a frozen factor": (Network, {"frozen": ("A",)}, {}, "A is generated or frozen"),
    "a negative scale": (Network, {"alpha": -1.0}, {}, "'first' has the scale -0.25, expected more than zero"),
    "bits": (Network, {}, {"bits": 1}, "bits is 1, expected 2 to 8"),
    "turns": (Network, {}, {"iterations": 0}, "iterations is 0, expected at least 1"),
    "a convolution": (convolution, {"targets": "first", "rank": 2}, {}, "is a conv2d, expected linear"),
    "another name": (Tied, {}, {}, "'first' has another name too"),
    "NaN": (with_nan, {}, {}, "'second' has NaN"),
    "quantised": (quantised_already, {}, {}, "'first' has 4 bits already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(name):
    make, fields, options, message = REFUSED[name]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        quantise_and_attach(model, config_of(**fields), **options)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_quantised_layers_are_no_targets():
    model = Network()
    model.first.weight = nn.Parameter(model.first.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantised weights are not adapted"):
        quantise_and_attach(model, config_of())


def test_it_trains():
    model = Network()
    adapter = quantise_and_attach(model, config_of())
    model(X).square().sum().backward()
    assert all(factor.grad.abs().max() > 0 for factor in adapter.learned.values())
    assert attach(Network(), config_of()).num_params() == adapter.num_params()
