"""Activation checkpointing: gradients are those without it, in both modes, with two forwards before a backward."""

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from metalora import AdapterConfig, ConditionConfig, adapter_of, attach, checkpoint, checkpointing
from support.adapters import randomise

TORCHS_OWN = torch.utils.checkpoint.checkpoint
BOTH_MODES = pytest.mark.parametrize("reentrant", (True, False), ids=("reentrant", "non-reentrant"))


class Body(nn.Module):
    """Three blocks, each checkpointed by `how` (None: not at all)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)) for _ in range(3))
        self.head, self.how = nn.Linear(6, 2), None

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) if self.how is None else self.how(block, x)
        return self.head(x)


def body(method):
    model = Body().double()
    config = AdapterConfig(
        method=method, rank=2, experts=2, targets=("blocks.*.*",), condition=ConditionConfig(hidden=4)
    )
    randomise(attach(model, config))
    return model, [torch.randn(3, 5, dtype=torch.float64) for _ in range(2)]


def timm_model(name):
    from timm.models.resnet import BasicBlock, ResNet
    from timm.models.vision_transformer import VisionTransformer

    if name == "resnet":
        return ResNet(BasicBlock, [2, 1, 1, 1], channels=(4, 4, 6, 6), stem_width=4, num_classes=3)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=3)


def hugging_face_model():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        n_layer=2,
        n_embd=8,
        n_head=2,
        vocab_size=13,
        n_positions=8,
        pad_token_id=0,
        num_labels=3,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    return GPT2ForSequenceClassification(config)


def backward_of_two(model, inputs):
    """Gradients after two forwards with different conditions and one backward, and the outputs."""
    adapter = adapter_of(model)
    adapter.zero_grad()
    outputs = [model(x) for x in inputs]
    outputs = [getattr(y, "logits", y) for y in outputs]
    sum((k + 1) * y.square().sum() for k, y in enumerate(outputs)).backward()
    return outputs, {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}


def agree(got, want):
    for a, b in zip(got[0], want[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert got[1].keys() == want[1].keys() and any("mapping_net" in name for name in want[1])
    for name in want[1]:
        torch.testing.assert_close(got[1][name], want[1][name], rtol=1e-9, atol=1e-9)


@BOTH_MODES
@pytest.mark.parametrize("method", ("moe-lora", "metalora-cp", "metalora-tr", "metalora-square"))
def test_a_hand_written_model(method, reentrant):
    model, inputs = body(method)
    want, calls = backward_of_two(model, inputs), []

    def how(block, x):
        def counted(x):
            calls.append(1)
            return block(x)

        return checkpoint(counted, x, adapter=adapter_of(model), use_reentrant=reentrant)

    model.how = how
    agree(backward_of_two(model, inputs), want)
    assert len(calls) == 2 * 3 * 3  # of every block of both inputs: the features, the forward and the recompute


@BOTH_MODES
def test_a_static_adapter_is_checkpointed_as_it_is(reentrant):
    model = Body().double()
    adapter = attach(model, AdapterConfig(rank=2, targets=("blocks.*.*",)))
    randomise(adapter)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)  # reentrant mode needs an input with gradient
    grads = []
    for how in (None, lambda block, x: checkpoint(block, x, adapter=adapter, use_reentrant=reentrant)):
        model.how = how
        adapter.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in adapter.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@BOTH_MODES
@pytest.mark.parametrize("method", ("lora", "metatt-4d", "metalora-cp"))
def test_an_adapter_that_was_off_in_a_forward_is_off_in_its_recompute(method, reentrant):
    model, inputs = body(method)
    adapter = adapter_of(model)
    inputs = [x.requires_grad_() for x in inputs]  # reentrant mode needs an input with gradient
    grads = []
    for how in (None, lambda block, x: checkpoint(block, x, adapter=adapter, use_reentrant=reentrant)):
        model.how = how
        model.zero_grad()
        inputs[0].grad = None
        with adapter.disabled():
            off = model(inputs[0])
        on = model(inputs[0])
        (off - on).square().sum().backward()
        grads.append([inputs[0].grad.clone(), *(p.grad.clone() for p in adapter.parameters() if p.grad is not None)])
    assert len(grads[0]) > 1
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@BOTH_MODES
def test_a_recompute_without_the_condition_is_a_clear_error(reentrant):
    model, inputs = body("metalora-cp")
    model.how = lambda block, x: torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
    inputs = [x.requires_grad_() for x in inputs]
    with pytest.raises(RuntimeError, match="no condition is active: .* metalora.checkpoint"):
        backward_of_two(model, inputs)


@BOTH_MODES
@pytest.mark.parametrize(
    "name, source",
    (
        pytest.param("resnet", "pooled"),
        pytest.param("resnet", "stages"),
        pytest.param("vit", "pooled"),
        pytest.param("vit", "stages"),
    ),
)
def test_a_timm_model_that_checkpoints_itself(name, source, reentrant):
    from timm.layers import set_reentrant_ckpt

    model = timm_model(name).double().eval()
    targets = ("layer*.conv1", "layer*.conv2") if name == "resnet" else ("blocks.*.mlp.fc1", "blocks.*.attn.qkv")
    size = 32 if name == "resnet" else 8
    inputs = [torch.randn(2, 3, size, size, dtype=torch.float64) + k for k in range(2)]
    condition = ConditionConfig(source=source, hidden=4)
    config = AdapterConfig(method="metalora-tr", rank=2, targets=targets, condition=condition)
    randomise(attach(model, config, example=inputs[0]))
    with torch.no_grad():
        for parameter in adapter_of(model).parameters():
            parameter.mul_(0.3)
    want = backward_of_two(model, inputs)
    ran = count_forwards(model)
    backward_of_two(model, inputs)
    once = len(ran)
    model.set_grad_checkpointing()
    set_reentrant_ckpt(reentrant)
    try:
        ran.clear()
        with checkpointing(model):
            got = backward_of_two(model, inputs)
    finally:
        set_reentrant_ckpt(False)
    agree(got, want)
    assert once < len(ran)  # blocks did run again: the checkpointing was on
    assert torch.utils.checkpoint.checkpoint is TORCHS_OWN


def count_forwards(model):
    ran = []
    [*adapter_of(model).layers.values()][-1].register_forward_hook(lambda *args: ran.append(1))
    return ran


@BOTH_MODES
def test_a_hugging_face_model_that_checkpoints_itself(reentrant):
    model = hugging_face_model().double()
    config = AdapterConfig(
        method="metalora-tr", rank=2, targets=("c_attn", "c_fc"), condition=ConditionConfig(hidden=4)
    )
    randomise(attach(model, config))
    inputs = [torch.randint(1, 13, (3, 6)) for _ in range(2)]
    model.train()
    want = backward_of_two(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ran = count_forwards(model)
    with checkpointing(model):
        got = backward_of_two(model, inputs)
    agree(got, want)
    assert len(ran) == 2 * 3  # the features, the forward and the recompute of each


def test_checkpointing_needs_an_adapter():
    with pytest.raises(ValueError, match="Body has no adapter"), checkpointing(Body()):
        pass
