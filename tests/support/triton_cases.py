"""Cases of the Triton kernels, for the interpreter on a CPU and for a card: functions of a device that assert."""

import json
import sys
import traceback
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from metalora import AdapterConfig, ConditionConfig
from metalora.adapters.triton_kernels.node import low_rank_linear
from support.adapters import attach_random

RANKS, ROWS, MIDS = (1, 3, 8, 64), (1, 7, 130), ("no Mid", "a Mid for each example", "a table of Mids")
EXAMPLES = {1: 1, 7: 7, 130: 5}  # rows -> examples; the last have 26 rows each, more than one block
CONSTANT = ConditionConfig(scope="constant")
GIVEN = ConditionConfig(source="tensor", feature_size=4, hidden=3)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 1e-2}


def assert_near(actual, expected, dtype=torch.float32):
    """Fail unless the largest difference is small beside the largest number that is expected."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max().clamp(min=1)


# ---- the update of one product ---------------------------------------------------------------------------------------
def dense_output(x, weight, bias, left, right, mid, index):
    """x W' + bias + x Delta W, with Delta W of each example formed."""
    rows = x.reshape(-1, x.shape[-1])
    delta = left.T @ right if mid is None else left.T @ mid @ right  # (i, o) or (m, i, o)
    if mid is None:
        return rows @ (weight.T + delta) + bias
    delta = delta if index is None else delta[index.long()]
    examples = rows.reshape(len(delta), -1, rows.shape[-1])
    return (examples @ (weight.T + delta)).flatten(0, 1) + bias


def numbers(rank, rows, mids, dtype, inputs=20, outputs=37):
    """Operands in float64, whose products are near 1; four Mids in a table, of which the last is not used."""
    examples, mixed_rank = EXAMPLES[rows], rank if mids == "no Mid" else rank + 1
    mid = None if mids == "no Mid" else torch.randn(4 if "table" in mids else examples, rank, mixed_rank) / rank**0.5
    operands = [
        torch.randn(rows, inputs),
        torch.randn(outputs, inputs) / inputs**0.5,
        torch.randn(outputs),
        torch.randn(rank, inputs) / inputs**0.5,
        torch.randn(mixed_rank, outputs) / mixed_rank**0.5,
        mid,
    ]
    index = torch.randint(0, 3, (examples,)) if "table" in mids else None
    return [None if operand is None else operand.to(dtype).double() for operand in operands], index


def update(device, rank, rows, mids, dtype=torch.float32, **sizes):
    """The output and all gradients beside those of W + Delta W in float64."""
    operands, index = numbers(rank, rows, mids, dtype, **sizes)
    leaves = [None if operand is None else operand.to(device, dtype).requires_grad_() for operand in operands]
    x, weight, bias, left, right, mid = leaves
    weight.requires_grad_(False), bias.requires_grad_(False)
    y = low_rank_linear(x, weight, bias, left, right, mid, None if index is None else index.to(device))
    exact = [None if operand is None else operand.requires_grad_() for operand in operands]
    expected = dense_output(*exact, index)
    dy = torch.randn(expected.shape).to(dtype)
    y.backward(dy.to(device)), expected.backward(dy.double())
    assert_near(y, expected, dtype)
    for leaf, of_exact in zip((x, left, right, mid), (exact[0], *exact[3:]), strict=True):
        if leaf is not None:
            assert_near(leaf.grad, of_exact.grad, dtype)
    if index is not None:
        assert not mid.grad[3].any()  # no example has this condition


def chosen_blocks(device):
    """Every size of the blocks gives the same update, also where the last block is not full."""
    from metalora.adapters.triton_kernels.launch import Blocks, add_low_rank_

    (x, weight, bias, left, right, _), _ = numbers(8, 130, "no Mid", torch.float32, inputs=150, outputs=140)
    expected = dense_output(x, weight, bias, left, right, None, None)
    x, left, right, base = (tensor.float().to(device) for tensor in (x, left, right, x @ weight.T + bias))
    for rows, channels, stages in ((16, 256, 3), (32, 64, 2), (64, 128, 2)):
        hidden, _ = add_low_rank_(y := base.clone(), x, left, right, blocks=Blocks(rows, channels, stages))
        assert_near(y, expected), assert_near(hidden, x @ left.T)


def no_graph(device):
    """Without gradients nothing but the output is stored, and it is the same."""
    (x, *factors), index = numbers(3, 7, "a table of Mids", torch.float32)
    x, *factors = (tensor.float().to(device) for tensor in (x, *factors))
    with torch.no_grad():
        y = low_rank_linear(x, *factors, index.to(device))
    assert torch.equal(low_rank_linear(x.requires_grad_(), *factors, index.to(device)), y) and not y.requires_grad


def layouts(device):
    """Views in other layouts, and a gradient that is one number repeated."""
    (x, weight, bias, left, right, mid), index = numbers(8, 130, "a table of Mids", torch.float32)
    exact = [tensor.requires_grad_() for tensor in (x, left, right, mid)]
    dense_output(x, weight, bias, left, right, mid, index).sum().backward()
    leaves = [tensor.detach().float().to(device) for tensor in (x, left, right, mid)]
    views = [leaf.mT.contiguous().mT.requires_grad_() for leaf in leaves]
    y = low_rank_linear(views[0], weight.float().to(device), bias.float().to(device), *views[1:], index.to(device))
    y.sum().backward()
    for view, of_exact in zip(views, exact, strict=True):
        assert_near(view.grad, of_exact.grad)


def one_gradient(device):
    """Each gradient alone, of a layer whose other operands are frozen."""
    operands, _ = numbers(3, 7, "a Mid for each example", torch.float32)
    exact = [operand.requires_grad_() for operand in operands]
    dense_output(*exact, None).square().sum().backward()
    for position in (0, 3, 4, 5):  # x, Left, Right, Mid
        leaves = [operand.detach().float().to(device) for operand in operands]
        leaves[position].requires_grad_()
        low_rank_linear(*leaves).square().sum().backward()
        assert_near(leaves[position].grad, exact[position].grad)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        x = operands[0].detach().float().to(device).requires_grad_()
        rest = [operand.detach().float().to(device) for operand in operands[1:]]
        (dx,) = torch.autograd.grad(low_rank_linear(x, *rest).square().sum(), x, create_graph=True)
        dx.sum().backward()


def refused_output(device):
    """An output whose channels do not lie next to each other."""
    from metalora.adapters.triton_kernels.launch import add_low_rank_

    y, thin = torch.zeros(6, 4, device=device).T, torch.zeros(2, 6, device=device)
    with pytest.raises(ValueError, match="channels next to each other"):
        add_low_rank_(y, torch.zeros(4, 6, device=device), thin, thin)


# ---- adapted models --------------------------------------------------------------------------------------------------
class Block(nn.Module):
    """Two projections of one input, numbered so that MetaTT fits; the second one of GPT-2's class."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(12, 12), Conv1D(12, 12)

    def forward(self, x):
        return x + torch.tanh(self.query(x)) * self.value(x)


class Mlp(nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.layers, self.checkpointed = nn.ModuleList(Block() for _ in range(2)), checkpointed

    def forward(self, x):
        for block in self.layers:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


class Encoder(nn.Module):
    """A small BERT on embedded texts."""

    def __init__(self):
        super().__init__()
        sizes = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
        self.bert = BertModel(BertConfig(**sizes), add_pooling_layer=False)

    def forward(self, x):
        return self.bert(inputs_embeds=x).last_hidden_state


METHODS = {"lora": CONSTANT, "metatt-4d": CONSTANT, "metalora-cp": GIVEN, "metalora-tr": GIVEN}


def adapted(device, model, method="lora", rank=3, dtype=torch.float32, **options):
    options = {"targets": "query,value", "alpha": 2 * rank, "condition": METHODS.get(method, CONSTANT)} | options
    model = model.eval().to(device, dtype)
    adapter = attach_random(model, AdapterConfig(method, rank, **options), std=0.3)
    adapter.weight_first = False
    return model, adapter


def results(model, adapter, x, rows, is_reference, packed=False):
    """The output and the gradients of x and of every parameter, by Triton or by plain autograd."""
    adapter.use_kernels("torch" if is_reference else "triton")
    adapter.fused = not is_reference
    model.zero_grad()
    x = x.clone().requires_grad_()
    if not adapter.conditional:
        y = model(x)
    else:
        features = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).to(x.device)
        condition = adapter.condition(features if rows is not None else features[: len(x)])
        with adapter.using(condition, rows=rows, packed=packed):
            y = model(x)
            values = adapter.current().values
            if rows is not None and not is_reference and not packed:
                assert values.table is condition.values and not values._copied  # the table was read, not its copy
    y.float().square().sum().backward()
    return {"": y, "x": x.grad, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def same_as_plain(device, make, method, rows=None, packed=False, dtype=torch.float32, **options):
    """A model by Triton beside the same one by plain autograd."""
    model, adapter = adapted(device, make(), method, dtype=dtype, **options)
    batch = 4 if rows is None else len(rows)
    x = torch.randn((1, batch, 12) if packed else (batch, 5, 12)).to(device, dtype)
    reference = results(model, adapter, x, rows, is_reference=True, packed=packed)
    actual = results(model, adapter, x, rows, is_reference=False, packed=packed)
    assert {str(layer.kernel) for layer in adapter.layers.values()} == {"Triton"}
    assert actual.keys() == reference.keys() and len(actual) > 4
    for name, value in reference.items():
        assert_near(actual[name], value, dtype)


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


class Products(TorchDispatchMode):
    """Counts the products of matrices that PyTorch computes."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += "mm" in function.__name__
        return function(*arguments, **(options or {}))


def launches(device):
    """A layer takes one launch forward and two backward beside the base's product, three with a Mid by example."""
    from metalora.adapters.triton_kernels import launch

    x = torch.randn(4, 5, 12, device=device, requires_grad=True)
    for method, backward in (("lora", 2), ("metalora-cp", 3)):
        model, adapter = adapted(device, nn.Sequential(nn.Linear(12, 12)), method, targets="0", alpha=None)
        adapter.use_kernels("triton")
        condition = adapter.condition(torch.randn(4, 4, device=device)) if adapter.conditional else None
        more = {} if condition is None else {"condition": condition}
        names = ("add_low_rank_kernel", "products_over_rows_kernel", "products_of_conditions_kernel")
        with pytest.MonkeyPatch.context() as patch:
            kernels = [Counted(getattr(launch, name)) for name in names]
            for name, kernel in zip(names, kernels, strict=True):
                patch.setattr(launch, name, kernel)
            with Products() as products:
                y = model(x, **more)
            assert (products.count, sum(kernel.launches for kernel in kernels)) == (1, 1)
            leaves = [
                x,
                *adapter.layers["0"].left_operands(None),
                *(() if condition is None else condition.values.values()),
            ]
            with Products() as products:
                torch.autograd.grad(y.sum(), [*leaves])
            assert (products.count, sum(kernel.launches for kernel in kernels)) == (1, 1 + backward)


def autocast(device):
    """Factors and base in float32, products in float16."""
    model, adapter = adapted(device, Mlp())
    x = torch.randn(4, 5, 12).to(device)
    with torch.autocast(torch.device(device).type, torch.float16):
        reference = results(model, adapter, x, None, is_reference=True)
        actual = results(model, adapter, x, None, is_reference=False)
    assert {str(layer.kernel) for layer in adapter.layers.values()} == {"Triton"}
    for name, value in reference.items():
        assert_near(actual[name], value, torch.float16)


def beams(device):
    """The beams of one prompt share its condition."""
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=30)
    decoder = LlamaForCausalLM(LlamaConfig(**sizes))
    model, adapter = adapted(device, decoder, "metalora-cp", targets="q_proj,v_proj")
    condition, prompts = adapter.condition(3 * torch.randn(2, 4, device=device)), torch.tensor([[5, 6], [5, 6]])
    texts = {}
    for name in ("torch", "triton"):
        adapter.use_kernels(name)
        options = dict(condition=condition, num_beams=2, num_return_sequences=2, max_new_tokens=3, do_sample=False)
        texts[name] = model.generate(prompts.to(device), pad_token_id=0, **options)
    assert {str(layer.kernel) for layer in adapter.layers.values()} == {"Triton"}
    assert torch.equal(texts["torch"], texts["triton"])


def other_paths(device):
    """Where Triton cannot run, the path runs that would run without it."""
    x = torch.randn(4, 5, 12, device=device)

    def ran(model, adapter, x=x, **call):
        adapter.use_kernels("triton")
        model(x, **call)
        return {str(layer.kernel) for layer in adapter.layers.values()}

    assert ran(*adapted(device, Mlp(), dtype=torch.float64), x.double()) == {"Fused"}
    assert ran(*adapted(device, Mlp()), x[:0]) == {"Fused"}
    wide = nn.Sequential(nn.Linear(140, 150))
    assert ran(*adapted(device, wide, rank=130, targets="0"), torch.randn(2, 140, device=device)) == {"Fused"}
    model, adapter = adapted(device, Mlp(), dropout=0.1)
    model.train()
    assert ran(model, adapter) == {"Fused"}
    model, adapter = adapted(device, Mlp(), condition=GIVEN, generated=("A", "B"))
    condition = adapter.condition(torch.randn(4, 4, device=device))
    assert ran(model, adapter, condition=condition) == {"PerExample"}
    assert ran(model, adapter, condition=condition[0]) == {"Triton"}
    picture = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert ran(*adapted(device, picture, targets="0"), torch.randn(2, 3, 4, 4, device=device)) == {"Fused"}
    model, adapter = adapted(device, Mlp())
    adapter.weight_first = True
    with torch.no_grad():
        assert ran(model, adapter) == {"WeightFirst"}
    adapter.use_kernels("torch")
    model(x)
    assert "Triton" not in {str(layer.kernel) for layer in adapter.layers.values()}


UPDATES = {
    f"rank {rank}, {rows} rows, {mids}": partial(update, rank=rank, rows=rows, mids=mids)
    for rank, rows, mids in product(RANKS, ROWS, MIDS)
}
TYPES = {
    f"{dtype}, {mids}".removeprefix("torch."): partial(update, rank=8, rows=130, mids=mids, dtype=dtype)
    for dtype, mids in product((torch.bfloat16, torch.float16), MIDS[::2])
}
MANY_CHANNELS = {  # more than a block has, in each type; the last block is not full
    f"many channels, {dtype}, {mids}": partial(
        update, rank=8, rows=7, mids=mids, dtype=getattr(torch, dtype), inputs=300, outputs=270
    )
    for dtype, mids in (("float32", MIDS[0]), ("float32", MIDS[2]), ("bfloat16", MIDS[0]), ("float16", MIDS[1]))
} | {"chosen blocks": chosen_blocks}
OPERANDS = {"no graph": no_graph, "layouts": layouts, "one gradient": one_gradient, "refused output": refused_output}
MODELS = {
    f"{make.__name__}, {method}": partial(same_as_plain, make=make, method=method)
    for make, method in product((Mlp, Encoder), METHODS)
} | {
    "Mlp, metalora-cp, a table": partial(same_as_plain, make=Mlp, method="metalora-cp", rows=[3, 1, 1, 0, 3, 3]),
    "Encoder, metalora-tr, a table": partial(same_as_plain, make=Encoder, method="metalora-tr", rows=[4, 4, 0]),
    "Mlp, metalora-cp, packed": partial(same_as_plain, make=Mlp, method="metalora-cp", rows=[3, 3, 1, 0], packed=True),
    "Mlp, lora, float16": partial(same_as_plain, make=Mlp, method="lora", dtype=torch.float16),
    "Mlp, metalora-cp, float16": partial(same_as_plain, make=Mlp, method="metalora-cp", dtype=torch.float16),
    "Mlp, metalora-cp, one target, float16": partial(
        same_as_plain, make=Mlp, method="metalora-cp", dtype=torch.float16, targets="layers.0.query"
    ),
    "Mlp, lora, checkpointed": partial(same_as_plain, make=partial(Mlp, checkpointed=True), method="lora"),
    "Mlp, lora, biases": partial(same_as_plain, make=Mlp, method="lora", bias="adapted"),
    "beams": beams,
    "launches": launches,
    "autocast": autocast,
    "other paths": other_paths,
}
CASES = UPDATES | TYPES | MANY_CHANNELS | OPERANDS | MODELS


def failures(names, device="cpu"):
    """Name -> the traceback of each case that fails."""
    failed = {}
    for name in names:
        torch.manual_seed(0)
        try:
            CASES[name](device)
        except Exception:
            failed[name] = traceback.format_exc()
    return failed


if __name__ == "__main__":
    print(json.dumps(failures(sys.argv[1:] or CASES)))
