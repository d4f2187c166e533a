"""In a PeftModel: what a model reads of an adapted layer, and classes with a forward of their own."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import StdConv2d
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from support.adapters import assert_close
from support.own_forwards import Router

pytest.importorskip("peft")
from peft import get_peft_model  # noqa: E402

import metalora.peft as mp  # noqa: E402


class Net(nn.Module):
    """Computes with the weight of a layer by itself, and has layers with a forward of their own."""

    def __init__(self):
        super().__init__()
        self.conv = StdConv2d(3, 4, 3)
        self.read = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).mean((2, 3)).to(self.read.weight.dtype) * self.conv.stride[0]
        return self.head(F.linear(x, self.read.weight, self.read.bias))


def config(*targets, method="lora", **options):
    return mp.TensorNetworkConfig(method=method, r=2, target_modules=list(targets), init_weights=False, **options)


def adapted(*targets, **options):
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.rand(3, 3, 6, 6).double()
    model = get_peft_model(net, config(*targets, **options)).eval()
    model.add_adapter("second", config(*targets, **options))
    return net, model, x


def expected(net, x, names):
    """The output by plain functions of PyTorch, with the Delta W of some adapters."""
    deltas = {path: sum(mp.adapter_of(net, name).delta(path) for name in names) for path in ("conv", "read")}
    conv = StdConv2d(3, 4, 3).double()
    conv.load_state_dict({"weight": net.conv.base_layer.weight + deltas["conv"]})
    hidden = conv(x).mean((2, 3))
    return net.head(F.linear(hidden, net.read.base_layer.weight + deltas["read"], net.read.base_layer.bias))


@pytest.mark.parametrize("names", [["default"], ["second"], ["default", "second"]], ids=" and ".join)
def test_active_adapters_take_part_and_merging_changes_nothing(names):
    net, model, x = adapted("conv", "read")
    with model.disable_adapter():
        base = model(x)
    model.base_model.set_adapter(names)
    live = model(x)
    assert_close(live, expected(net, x, names))
    assert not torch.allclose(live, base)
    live.sum().backward()
    learned = [factor for name in names for factor in mp.adapter_of(net, name).learned.values()]
    assert all(factor.grad is not None and factor.grad.any() for factor in learned)
    model.merge_adapter()
    assert_close(model(x), live)
    model.unmerge_adapter()
    assert torch.equal(model(x), live)


def test_a_mixed_batch_runs_the_forward_of_a_class_and_refuses_a_weight_that_is_read():
    net, model, x = adapted("conv")
    rows = torch.cat([model(x[:1]), model(x[1:2])])
    assert_close(model(x[:2], adapter_names=["default", "default"]), rows)
    _, model, x = adapted("read")
    with pytest.raises(ValueError, match="target 'read': .* while each example has an adapter of its own"):
        model(x[:2], adapter_names=["default", "second"])


CONDITION = {"source": "tensor", "feature_size": 3}


def test_a_weight_that_is_read_is_refused_for_an_adapter_by_example_and_left_out_by_all_linear():
    generated = config("read", method="metalora-cp", condition=CONDITION)
    net = Net()
    with pytest.raises(ValueError, match="Target module 'read' is not supported: the model computes with the weight"):
        get_peft_model(net, generated)
    assert type(net.read) is nn.Linear
    net = nn.ModuleDict({"net": Net(), "last": nn.Linear(4, 2)})
    generated.target_modules = "all-linear"
    with pytest.warns(UserWarning, match="1 weight because the model computes with the weight of this layer"):
        model = get_peft_model(net, generated)
    adapter = mp.adapter_of(model)
    assert [*adapter.targets] == ["net.head", "last"] and adapter.skipped[-1].path == "net.read"


def test_outputs_of_several_tensors_and_a_weight_that_a_parametrization_computes():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(Router(4, 4)).double(), config("0"))
    x, layer = torch.randn(3, 4).double(), model.base_model.model[0]
    weight = layer.base_layer.weight + mp.adapter_of(model).delta("0")
    assert_close(model(x).values, F.linear(x, weight, layer.base_layer.bias).softmax(-1).topk(2).values)
    with pytest.raises(ValueError, match="target '0': Router returns more than one tensor"):
        model.eval()(x, adapter_names=["default"] * 3)
    with pytest.raises(ValueError, match="computed by a parametrization, into which PEFT does not merge"):
        get_peft_model(nn.Sequential(weight_norm(nn.Linear(4, 4))), config("0"))
