"""The fused products beside plain autograd: the same outputs and gradients, with fewer products and passes."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from metalora import AdapterConfig, ConditionConfig, sweep
from metalora.adapters.layers.fused import InplaceChannelsAdd, InplaceLowRankAdd
from support.adapters import attach_random

CONSTANT, GIVEN = ConditionConfig(scope="constant"), ConditionConfig(source="tensor", feature_size=5, hidden=3)
QKV = ("query", "key", "value")


class Block(nn.Module):
    """Three projections of one input, and a fourth of their product."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        return x + self.dense(torch.tanh(self.query(x)) * self.key(x) + self.value(x))


class Net(nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        self.layers, self.checkpointed = nn.ModuleList(Block() for _ in range(2)), checkpointed

    def forward(self, x):
        for block in self.layers:
            x = block(x) if self.checkpointed is None else checkpoint(block, x, use_reentrant=self.checkpointed)
        return x


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, stride=2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def attach_seeded(net, method="lora", rank=3, targets=QKV, **more):
    torch.manual_seed(0)
    model = net.double().eval()
    config = AdapterConfig(method, rank, targets=targets, **{"condition": CONSTANT, **more})
    adapter = attach_random(model, config, std=0.3)
    adapter.weight_first = False
    return model, adapter


def results(model, adapter, x, fused, **call):
    """The output, and the gradients of the input and of every parameter."""
    adapter.fused = fused
    model.zero_grad()
    x = x.detach().clone().requires_grad_(x.requires_grad)
    condition = adapter.condition(call.pop("features")) if "features" in call else None
    more = {} if condition is None else {"condition": condition}
    y = model(x, **call, **more)
    (y.double() ** 3).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"": y.detach(), "x": x.grad if x.requires_grad else torch.zeros(()), **grads}


def same(model, adapter, x, **call):
    plain, fused = (results(model, adapter, x, which, **call) for which in (False, True))
    assert plain.keys() == fused.keys() and len(plain) > 2
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 6), (6,), (2, 3, 5, 6), (0, 5, 6)], ids=str)
@pytest.mark.parametrize("needs", [True, False], ids=["input with gradient", "input without"])
def test_linear_layers(shape, needs):
    for method, more in {"lora": {}, "metatt-4d": {}, "adalora": {}, "tenslora-qkv-depth": {}}.items():
        model, adapter = attach_seeded(Net(), method, **more)
        same(model, adapter, torch.randn(shape, dtype=torch.float64, requires_grad=needs))


@pytest.mark.parametrize("tokens", [2, 9], ids=["activations first", "folded"])
def test_factors_of_every_example(tokens):
    x = torch.randn(4, tokens, 6, dtype=torch.float64, requires_grad=True)
    model, adapter = attach_seeded(Net(), "metatt-4+1d", tasks=3)
    same(model, adapter, x, task_ids=torch.tensor([0, 2, 1, 2]))
    for generated in (("c",), ("A",), ("B",)):
        model, adapter = attach_seeded(Net(), "metalora-cp", generated=generated, condition=GIVEN)
        same(model, adapter, x, features=torch.randn(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["channels first", "last"])
@pytest.mark.parametrize("size", [(9, 8), (5, 4)], ids=["many positions", "fewer than the rank"])
def test_convolutions(layout, size):
    x = torch.randn(4, 3, *size, dtype=torch.float64, requires_grad=True).to(memory_format=layout)
    for method, condition in {"lora": CONSTANT, "metalora-cp": GIVEN, "metalora-tr": GIVEN}.items():
        model, adapter = attach_seeded(Conv().to(memory_format=layout), method, targets="conv", condition=condition)
        call = {} if condition is CONSTANT else {"features": torch.randn(4, 5, dtype=torch.float64)}
        same(model, adapter, x.detach().requires_grad_(), **call)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointed_blocks(reentrant):
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    same(*attach_seeded(Net(reentrant), "metatt-4d"), x)
    model, adapter = attach_seeded(Net(), "metatt-4d")
    want = results(model, adapter, x, True)
    other, its = attach_seeded(Net(reentrant), "metatt-4d")
    other.load_state_dict(model.state_dict())
    for name, value in results(other, its, x, True).items():
        torch.testing.assert_close(value, want[name], rtol=1e-10, atol=1e-10)


class Products(TorchFunctionMode):
    """Records the matrices of the linear products, (out, in), and counts the products by the width of their output."""

    def __init__(self):
        super().__init__()
        self.matrices = []

    @property
    def widths(self):
        return [len(matrix) for matrix in self.matrices]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            self.matrices.append(args[1])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["lora", "metatt-4d"])
def test_a_product_on_a_cpu_reads_left_row_by_row_although_its_factor_is_stored_by_columns(method):
    model, _ = attach_seeded(Net(), method)
    with Products() as products:
        model(torch.randn(4, 5, 6, dtype=torch.float64))
    assert 3 in products.widths and all(matrix.is_contiguous() for matrix in products.matrices)


def test_query_key_and_value_share_what_they_read_of_one_input():
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for method, each in {"metatt-4d": 1, "lotr": 1, "vera": 1, "lora": 3}.items():
        model, _ = attach_seeded(Net(), method, rank=2)
        for run in (nullcontext(), torch.no_grad()):
            with run, Products() as seen:
                model(x)
            assert seen.widths.count(2) == 2 * each
    model, adapter = attach_seeded(Net(), "metatt-4d", rank=2)
    block = model.layers[0]
    with Products() as seen:  # a layer on its own keeps nothing: its factors may change before the next call
        block.query(x), block.key(x)
    assert seen.widths.count(2) == 2 and adapter.state.shared.hidden is None
    model(x)
    assert adapter.state.shared.hidden is None and adapter.state.shared.x is None


class Folds(TorchFunctionMode):
    """Counts the products of factors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.einsum and len(args) > 2
        return function(*args, **(kwargs or {}))


def test_the_targets_of_one_plan_are_folded_together():
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    for method in ("metatt-4d", "lotr", "tenslora-qkv-depth"):
        model, adapter = attach_seeded(Net(), method, rank=2)
        counts = []
        for adapter.fused in (False, True):
            with Folds() as seen:
                model(x)
            counts.append(seen.count)
        assert counts[0] == 6 * counts[1] > 0 and adapter.state.forward is None
    model, adapter = attach_seeded(Net(), "metatt-4d", rank=2)
    model(x)
    sweep(model, rank=1)  # other cuts: found anew
    same(model, adapter, x.requires_grad_())
    model, adapter = attach_seeded(Net(), "metatt-4+1d", rank=2, tasks=3)  # every example has its own
    model(x, task_ids=1)
    assert adapter.batched_folds() == []


def test_an_input_changed_in_place_is_not_the_same():
    model, adapter = attach_seeded(Net(), "metatt-4d")
    block = model.layers[0]

    def forward(x):
        y = block.query(x)
        x.mul_(2.0)
        return y + block.key(x)

    block.forward = forward
    with torch.no_grad():
        found = []
        for adapter.fused in (False, True):
            found.append(model(torch.ones(2, 3, 6, dtype=torch.float64)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_what_others_see_or_train_takes_the_plain_path():
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    model, adapter = attach_seeded(Net(), "metatt-4d")
    seen = []
    model.layers[0].query.base.register_forward_hook(lambda module, args, y: seen.append(y))
    model(x)
    torch.testing.assert_close(seen[0], nn.functional.linear(x, *model.layers[0].query.base.parameters()))
    model.layers[0].key.base.weight.requires_grad_(True)
    same(model, adapter, x)
    assert model.layers[0].key.base.weight.grad.abs().sum() > 0


def test_second_derivatives():
    model, adapter = attach_seeded(Net(), "metatt-4d")
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    found = []
    for adapter.fused in (False, True):
        first = torch.autograd.grad((model(x) ** 3).sum(), list(adapter.parameters()), create_graph=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in first), list(adapter.parameters())))
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)


def test_autocast_computes_in_its_own_type():
    model, adapter = attach_seeded(Net(), "metatt-4d")
    model.float()
    x = torch.randn(4, 5, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        plain, fused = (results(model, adapter, x, which) for which in (False, True))
    assert fused[""].dtype == plain[""].dtype and fused["x"].dtype == torch.float32
    for name in plain:
        torch.testing.assert_close(fused[name], plain[name], rtol=0.05, atol=0.05 * float(plain[name].abs().max()))


def test_autocast_leaves_double_precision_as_it_is():
    model, adapter = attach_seeded(Net(), "lora")
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    want = results(model, adapter, x, False)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(model, adapter, x, True)
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10)


class Scalings(TorchFunctionMode):
    """Counts the products of a tensor with a number."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in ("mul", "__mul__") and isinstance(args[1], int | float)
        return function(*args, **(kwargs or {}))


def test_a_scale_of_one_is_not_multiplied_by():
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    for method, each in {"lora": 6, "metatt-4d": 1}.items():
        counts = []
        for alpha in (None, 3, 6):  # over a rank of three: 1, 1 and 2
            model, _ = attach_seeded(Net(), method, alpha=alpha, scale="alpha/r")
            with Scalings() as seen:
                model(x)
            counts.append(seen.count)
        assert counts == [0, 0, each]


def test_functional_calls():
    model, adapter = attach_seeded(Net(), "lora")
    x = torch.randn(4, 6, dtype=torch.float64)
    each = torch.func.vmap(lambda row: model(row[None])[0])(x)
    torch.testing.assert_close(each, model(x))


def test_the_product_writes_into_the_output():
    y, h, up = torch.randn(2, 3, 4), torch.randn(2, 3, 2), torch.randn(2, 4)
    want, place = y + h @ up, y.data_ptr()
    got = InplaceLowRankAdd.apply(y, h, up, -1)
    assert got.data_ptr() == place
    torch.testing.assert_close(got, want)
    picture = copy.deepcopy(y).mT  # (b, o, t), as Conv1d gives it
    torch.testing.assert_close(InplaceLowRankAdd.apply(picture.contiguous(), h, up, 1), (want + h @ up).mT)


@pytest.mark.parametrize("axes", [1, 2])
def test_an_update_of_pictures_with_the_channels_first_has_the_gradients_of_plain_autograd(axes):
    torch.manual_seed(0)
    shape = (4, 3)[:axes]
    y, h = torch.randn(2, 5, *shape, dtype=torch.float64), torch.randn(2, 3, *shape, dtype=torch.float64)
    operands = [tensor.requires_grad_() for tensor in (y, h, torch.randn(3, 5, dtype=torch.float64))]

    def update(y, h, up):
        return InplaceChannelsAdd.apply(y.clone(), h, up)

    expected = y + torch.einsum("bk...,ko->bo...", h, operands[2])
    torch.testing.assert_close(update(*operands), expected)
    assert torch.autograd.gradcheck(update, operands) and torch.autograd.gradgradcheck(update, operands)
