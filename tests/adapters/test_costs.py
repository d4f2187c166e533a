"""What an adapter costs, counted: multiply-adds of a step, and what is kept for its backward. No clock."""

from math import prod

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metalora import AdapterConfig, ConditionConfig, attach, merge

B, T, S, K, LAYERS = 3, 40, 48, 4, 2  # examples, tokens, width, rank, blocks
CONSTANT = ConditionConfig(scope="constant")
QKV = ("query", "key", "value")
IN_PLACE = torch.ops.aten.addmm_, torch.ops.aten.baddbmm_


class Block(nn.Module):
    """Three projections of one input, mixed without a product."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(S, S) for _ in range(3))

    def forward(self, x):
        return torch.tanh(self.query(x)) * self.key(x) + self.value(x)


def blocks():
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(LAYERS))).requires_grad_(False)


def convolutions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 12, 3, stride=2, padding=1))
    return net.requires_grad_(False)


def attach_method(net, method, weight_first=False, tasks=1, targets=QKV):
    adapter = attach(net, AdapterConfig(method, K, targets=targets, condition=CONSTANT, tasks=tasks))
    adapter.weight_first = weight_first
    return adapter


def product(y, left, right, out_shape=None, **more):
    """Operations of y + left right, from shapes: torch counts this one only where it is not in place."""
    return 2 * prod(left) * right[-1]


def multiply_adds(net, *inputs, backward=True, **more):
    """Of a forward and, where asked for, a backward that goes back to the input."""
    with (
        FlopCounterMode(display=False, custom_mapping=dict.fromkeys(IN_PLACE, product)) as counter,
        torch.set_grad_enabled(backward),
    ):
        y = net(*(x.requires_grad_(backward) for x in inputs), **more)
        if backward:
            y.square().sum().backward()
    return counter.get_total_flops() // 2


def folds(adapter):
    """Multiply-adds of Mid . Right, of every target that has a Mid."""
    found = [layer.form for layer in adapter.layers.values()]
    return sum(cut.fold.flops // 2 for cut in found if cut.mid)


@pytest.mark.parametrize("method, lefts", {"lora": 3, "metatt-4d": 1, "lotr": 1, "tenslora-qkv-depth": 1}.items())
def test_a_step_costs_two_thin_products_and_their_gradients(method, lefts):
    x, frozen, net = torch.randn(B, T, S), blocks(), blocks()
    adapter = attach_method(net, method)
    for backward, times in ((False, 1), (True, 3)):
        added = multiply_adds(net, x, backward=backward) - multiply_adds(frozen, x, backward=backward)
        thin = LAYERS * B * T * K * (lefts * S + 3 * S)  # x Left, once where Q, K and V share it, and h Right
        most = times * (thin + folds(adapter))
        if method == "tenslora-qkv-depth":  # a step of its fold is no product
            assert times * thin < added <= most
        else:
            assert added == most


def test_a_convolution_costs_the_thin_one_and_a_one_by_one():
    x, frozen, net = torch.randn(B, 6, 10, 10), convolutions(), convolutions()
    attach_method(net, "lora", targets="conv")
    thin = B * K * (100 * (9 * 6 + 8) + 25 * (9 * 8 + 12))
    for backward, times in ((False, 1), (True, 3)):
        added = multiply_adds(net, x, backward=backward) - multiply_adds(frozen, x, backward=backward)
        assert added == times * thin


@pytest.mark.parametrize("tokens", [1, T])
def test_inference_takes_the_cheaper_way(tokens):
    x, frozen, net = torch.randn(1, tokens, S), blocks(), blocks()
    attach_method(net, "lora", weight_first=True)
    weight, cut = K * S * S, tokens * K * 2 * S
    added = multiply_adds(net, x, backward=False) - multiply_adds(frozen, x, backward=False)
    assert added == LAYERS * 3 * min(weight, cut)


def test_a_batch_of_many_tasks_costs_a_small_product_more():
    x, frozen, net = torch.randn(B, T, S), blocks(), blocks()
    adapter = attach_method(net, "metatt-4+1d", tasks=64)
    one, many = (multiply_adds(net, x, task_ids=ids) for ids in (5, [5, 0, 63]))
    mids = LAYERS * 3 * 3 * B * (T * K * K + 3 * K**3)  # h Mid of every example, beside its Mid folded
    assert 0 <= many - one <= mids + 3 * folds(adapter)
    assert many - one < (one - multiply_adds(frozen, x)) / 3


def test_merged_costs_the_base():
    x, net = torch.randn(B, T, S), blocks()
    attach_method(net, "metatt-4d")
    merge(net)
    assert multiply_adds(net, x) == multiply_adds(blocks(), x)


@pytest.mark.parametrize("method, lefts", {"lora": 3, "metatt-4d": 1}.items())
def test_a_step_keeps_its_input_and_a_thin_activation(method, lefts):
    def kept(net):
        """Bytes of what a forward saves for backward, each storage once, without those of parameters."""
        parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
        found = {}

        def pack(one):
            storage = one.untyped_storage()
            if storage.data_ptr() not in parameters:
                found[storage.data_ptr()] = storage  # held, so that no other takes its place
            return one

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
            output = net(torch.randn(B, T, S).requires_grad_())
        assert output.requires_grad
        return sum(storage.nbytes() for storage in found.values())

    net = blocks()
    adapter = attach_method(net, method)
    factors = 4 * sum(LAYERS * 3 * K * (S + K) for _ in adapter.method.factors)  # small tensors on the way to Right
    hidden, inputs = 4 * LAYERS * lefts * B * T * K, 4 * LAYERS * B * T * S
    assert hidden <= kept(net) - kept(blocks()) <= hidden + inputs + factors
