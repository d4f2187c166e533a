"""Factors of 16-bit bases: cast together once a forward, with the numbers of a cast in every layer."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metalora import AdapterConfig, ConditionConfig
from metalora.adapters.cast_once import CastOnce
from metalora.adapters.layers.fused import FusedLowRankLinear
from support.adapters import attach_random
from support.operations import Operations

GIVEN = ConditionConfig(source="tensor", feature_size=5, hidden=3)
CONSTANT = ConditionConfig(scope="constant")
METHODS = {"lora": CONSTANT, "metatt-4d": CONSTANT, "lotr": CONSTANT, "metalora-cp": GIVEN, "metalora-tr": GIVEN}


class Net(nn.Module):
    def __init__(self, checkpointed=None):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(6, 6), "key": nn.Linear(6, 6)}) for _ in range(3))
        self.checkpointed = checkpointed

    def forward(self, x):
        for layer in self.layers:
            x = self.block(layer, x) if self.checkpointed is None else self.recomputed(layer, x)
        return x

    def block(self, layer, x):
        return x + layer["key"](torch.tanh(layer["query"](x)))

    def recomputed(self, layer, x):
        return checkpoint(self.block, layer, x, use_reentrant=self.checkpointed)


def adapted(method, dtype=torch.bfloat16, checkpointed=None):
    torch.manual_seed(0)
    model = Net(checkpointed).to(dtype)
    config = AdapterConfig(method, 2, targets="query,key", alpha=3, condition=METHODS[method])
    return model, attach_random(model, config)


def run(model, adapter, conditions=4):
    """The output, and the gradients of the input and of all factors."""
    torch.manual_seed(1)
    x = torch.randn(4, 3, 6, dtype=next(model.parameters()).dtype, requires_grad=True)
    options = {"condition": adapter.condition(torch.randn(conditions, 5))} if adapter.conditional else {}
    y = model(x, **options)
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *adapter.learned.values()], allow_unused=True)]


# ---- the numbers -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "method, conditions", [(method, 4) for method in METHODS] + [("metalora-cp", 1), ("metalora-tr", 1)]
)
def test_outputs_and_gradients_are_those_of_a_cast_in_every_layer(method, conditions, dtype, monkeypatch):
    together = run(*adapted(method, dtype), conditions)
    monkeypatch.setattr(CastOnce, "__call__", lambda self: None)
    alone = run(*adapted(method, dtype), conditions)
    for value, expected in zip(together, alone, strict=True):  # bit for bit: the order of no sum changes
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert all(gradient.dtype == torch.float32 for gradient in together[2:])


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_part_computes_what_it_computes_without(reentrant):
    plain = run(*adapted("lora"))
    model, adapter = adapted("lora", checkpointed=reentrant)
    torch.manual_seed(1)
    x = torch.randn(4, 3, 6, dtype=torch.bfloat16, requires_grad=True)
    torch.autograd.backward(model(x).float().square().sum())
    for factor, expected in zip(adapter.learned.values(), plain[2:], strict=True):
        torch.testing.assert_close(factor.grad, expected, rtol=2e-2, atol=1e-2)


def test_a_backward_can_be_differentiated_again():
    model, adapter = adapted("lora")
    x = torch.randn(2, 3, 6, dtype=torch.bfloat16, requires_grad=True)
    factors = list(adapter.learned.values())
    first = torch.autograd.grad(model(x).float().square().sum(), factors, create_graph=True)
    second = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), factors)
    assert all(torch.isfinite(gradient).all() and gradient.any() for gradient in second)


# ---- the operations --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lora", "metatt-4d"])
def test_a_step_casts_once_forward_and_once_backward(method):
    model, adapter = adapted(method)
    x = torch.randn(4, 3, 6, dtype=torch.bfloat16)
    with Operations() as operations:
        output = model(x)
    assert operations.names.count("_foreach_copy_") == 1 and "_to_copy" not in operations.names
    loss = output.sum()
    with Operations() as operations:
        torch.autograd.backward(loss)
    assert operations.names.count("_foreach_copy_") == 1 and "_to_copy" not in operations.names


@pytest.mark.parametrize("conditions", [1, 4])
def test_what_depends_on_conditions_is_cast_once_too(conditions):
    model, adapter = adapted("metalora-cp")
    condition, x = adapter.condition(torch.randn(conditions, 5)), torch.randn(4, 3, 6, dtype=torch.bfloat16)
    with Operations() as operations:
        output = model(x, condition=condition)
    assert operations.names.count("_foreach_copy_") == 2 and "_to_copy" not in operations.names
    loss = output.sum()
    with Operations() as operations:
        torch.autograd.backward(loss)
    assert operations.names.count("_foreach_copy_") == 2 and "_to_copy" not in operations.names


@pytest.mark.parametrize("rows", [torch.tensor([0, 2, 2, 1]), None], ids=["rows of a table", "a condition for each"])
def test_each_forward_casts_for_its_own_conditions(rows, monkeypatch):
    model, adapter = adapted("metalora-cp")
    x = torch.randn(4, 3, 6, dtype=torch.bfloat16)
    conditions = [adapter.condition(torch.randn(4, 5)) for _ in range(2)]
    outputs = []
    for condition in conditions:
        with adapter.using(condition, rows=rows), torch.no_grad(), Operations() as operations:
            outputs.append(model(x))
        assert "_to_copy" not in operations.names
    assert not torch.equal(*outputs)
    monkeypatch.setattr(CastOnce, "__call__", lambda self: None)
    for condition, output in zip(conditions, outputs, strict=True):
        with adapter.using(condition, rows=rows), torch.no_grad():
            assert torch.equal(model(x), output)


def test_nothing_is_cast_for_a_base_of_float32_or_under_autocast():
    model, _ = adapted("metatt-4d", torch.float32)
    with Operations() as operations:
        model(torch.randn(4, 3, 6))
    assert "_foreach_copy_" not in operations.names
    model, _ = adapted("metatt-4d")
    with Operations() as operations, torch.autocast("cpu", torch.float16):
        model(torch.randn(4, 3, 6))
    assert "_foreach_copy_" not in operations.names


def test_the_gradient_of_left_has_the_layout_of_its_factor():
    """On a card Left is a view of its factor; with another layout autograd would copy its gradient."""
    factor = torch.randn(6, 2, requires_grad=True)
    y, _ = FusedLowRankLinear.apply(torch.randn(4, 6), torch.randn(5, 6), None, factor.mT, None, torch.randn(2, 5))
    with Operations() as operations:
        torch.autograd.backward(y.sum())
    assert "mm" in operations.names and "new_empty_strided" not in operations.names
