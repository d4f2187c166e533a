"""Which kernel runs, and what it costs in Python calls; what a forward leaves behind."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.adapters import kernels

CONSTANT = ConditionConfig(scope="constant")
GIVEN = ConditionConfig(source="tensor", feature_size=4, hidden=3)


def bert():
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    return BertModel(BertConfig(**sizes)), torch.arange(2 * 5).reshape(2, 5)


def llama():
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30)
    return LlamaModel(LlamaConfig(**sizes)), torch.arange(2 * 5).reshape(2, 5)


def vit():
    timm = pytest.importorskip("timm")
    sizes = dict(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=0)
    return timm.models.VisionTransformer(**sizes), torch.randn(2, 3, 16, 16)


def resnet():
    timm = pytest.importorskip("timm")
    return timm.create_model("resnet10t", pretrained=False, num_classes=0), torch.randn(2, 3, 32, 32)


MODELS = {
    "BERT": (bert, ("query", "key", "value")),
    "ViT": (vit, ("qkv", "fc1")),
    "Llama": (llama, ("q_proj", "v_proj", "down_proj")),
    "ResNet": (resnet, "conv"),
}


def ran(adapter):
    return {layer.kernel for layer in adapter.layers.values()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["lora", "metatt-4d"])
def test_every_target_is_fused_in_training_and_in_eval(name, method):
    make, targets = MODELS[name]
    if method == "metatt-4d" and name == "ResNet":
        pytest.skip("MetaTT numbers layers, and a ResNet's blocks have none")
    torch.manual_seed(0)
    model, inputs = make()
    adapter = attach(model, AdapterConfig(method, 2, targets=targets, condition=CONSTANT))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.3)
    for training in (True, False):
        model.train(training)
        model(inputs)
        assert ran(adapter) == {kernels.FUSED}, training
    model.eval()
    with torch.no_grad():
        adapter.weight_first = False
        model(inputs)
        assert ran(adapter) == {kernels.FUSED}
        adapter.weight_first = True
        model(inputs)
        assert ran(adapter) <= {kernels.FUSED, kernels.WEIGHT_FIRST}
    assert str(kernels.FUSED) == "Fused"


def mlp(width=16):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def adapted(method="lora", **options):
    model = mlp()
    options = {"condition": CONSTANT, "targets": "linear", "exclude": ()} | options
    adapter = attach(model, AdapterConfig(method, 2, **options))
    return model, adapter


def test_named_kernels_of_every_situation():
    x = torch.randn(3, 5, 16)
    model, adapter = adapted(targets="0")
    layer = model[0]
    assert layer.kernel is None
    model(x)
    assert layer.kernel is kernels.FUSED
    with torch.no_grad():
        model(torch.randn(8, 16, 16))  # 128 positions: W + Delta W is cheaper than the form from 8 on
    assert layer.kernel is kernels.WEIGHT_FIRST
    adapter.weight_first = adapter.fused = False
    model(x)
    assert layer.kernel is kernels.PLAIN
    adapter.fused = True
    layer.base.weight.requires_grad_(True)
    model(x)
    assert layer.kernel is kernels.PLAIN
    layer.base.weight.requires_grad_(False)
    handle = layer.base.register_forward_hook(lambda *_: None)
    model(x)
    assert layer.kernel is kernels.PLAIN
    handle.remove()
    assert copy.deepcopy(layer)._last == [kernels.PLAIN] and copy.deepcopy(layer).kernel is kernels.PLAIN


def test_many_conditions_and_circuits_have_kernels_of_their_own():
    x = torch.randn(3, 5, 16)
    model, adapter = adapted("metalora-cp", condition=GIVEN, targets="0")
    model(x, condition=adapter.condition(torch.randn(3, 4)))
    assert model[0].kernel is kernels.PER_EXAMPLE
    model(x, condition=adapter.condition(torch.randn(1, 4)))
    assert model[0].kernel is kernels.FUSED
    adapter.fused = False
    model(x, condition=adapter.condition(torch.randn(3, 4)))
    assert model[0].kernel is kernels.PER_EXAMPLE_PLAIN
    model, adapter = adapted("quanta", targets="0")
    model(x)
    assert model[0].kernel is kernels.WEIGHT_FIRST
    adapter.weight_first = False
    model(x)
    assert model[0].kernel is kernels.CIRCUIT


class Siblings(nn.Module):
    """Two layers of two projections, numbered, so that MetaTT fits."""

    def __init__(self):
        super().__init__()
        blocks = [nn.ModuleDict({"query": nn.Linear(16, 16), "key": nn.Linear(16, 16)}) for _ in range(2)]
        self.layers = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.layers:
            x = torch.tanh(block["query"](x)) + block["key"](x)
        return x


def python_calls(model, layer, x):
    """The Python functions that run below a layer's `forward` while the model runs."""
    depth, names, forward = 0, [], type(layer).forward.__code__

    def profile(frame, event, argument):
        nonlocal depth
        if event == "call" and frame.f_code is forward and frame.f_locals.get("self") is layer:
            depth = 1
        elif event == "call" and depth:
            names.append(frame.f_code.co_qualname)
            depth += 1
        elif event == "return" and depth:
            depth -= 1

    model(x)  # whatever is made once is made here
    sys.setprofile(profile)
    try:
        model(x)
    finally:
        sys.setprofile(None)
    return names


@pytest.mark.parametrize("method", ["lora", "metatt-4d", "lotr", "tenslora-qkv-depth"])
def test_an_adapted_linear_costs_at_most_fifteen_python_calls_in_training(method):
    torch.manual_seed(0)
    model = Siblings()
    adapter = attach(model, AdapterConfig(method, 2, targets="query,key", alpha=4, condition=CONSTANT))
    for path in ("layers.0.query", "layers.1.key"):
        names = python_calls(model, model.get_submodule(path), torch.randn(2, 3, 16, requires_grad=True))
        assert ran(adapter) == {kernels.FUSED}
        assert 0 < len(names) <= 15, names


# ---- what a forward leaves behind ------------------------------------------------------------------------------------
class Stop(BaseException):
    """As KeyboardInterrupt, for which torch runs no forward hooks."""


def left_behind(adapter):
    current = adapter.current()
    return current.values, adapter.state.forward, adapter.state.shared.x, current.enabled, adapter.recorder.active


CLEAN = (None, None, None, True, False)


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, RuntimeError])
def test_an_exception_in_a_forward_leaves_nothing_behind(error):
    torch.manual_seed(0)
    model = Siblings()
    config = AdapterConfig("metatt-4+1d", 2, targets="query,key", tasks=3, condition=CONSTANT)
    adapter = attach(model, config)
    x = torch.randn(2, 3, 16)

    def stop(*_):
        raise error

    handle = model.layers[1]["key"].register_forward_pre_hook(stop)
    with pytest.raises(error):
        model(x, task_ids=1)
    handle.remove()
    assert left_behind(adapter) == CLEAN
    with pytest.raises(ValueError, match="task_ids"):
        model(x)
    with pytest.raises(RuntimeError, match="no condition is active"):
        model.layers[0]["query"](x)  # a part on its own does not serve the last task


def test_every_thread_makes_its_own_condition():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Linear(16, 3)).eval()
    condition = ConditionConfig(source="stages", stages=("0", "1"), hidden=3)
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="2", condition=condition))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    inputs = [torch.randn(2, 16) for _ in range(4)]
    with torch.no_grad():
        want = [adapter.condition(x).vector() for x in inputs]
    wrong, entered = [], threading.Barrier(4)

    def serve(k):
        entered.wait()
        for _ in range(50):
            with torch.no_grad():
                if not torch.equal(adapter.condition(inputs[k]).vector(), want[k]):
                    wrong.append(k)

    threads = [threading.Thread(target=serve, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
