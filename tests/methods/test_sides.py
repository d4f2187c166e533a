"""Methods whose network is another one at another projection: q, k and v, what is behind the attention, the MLP."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalora import AdapterConfig, attach, find_targets, load, merge, save, sweep, unmerge
from support.adapters import assert_close, randomise

WIDTH, HEADS, LAYERS, RANK = 8, 2, 3, 3
SIZE = WIDTH // HEADS
ALL = "q_proj,k_proj,v_proj,o_proj,fc1,fc2"


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.head_dim = SIZE
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        q, k, v = (p(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.fc1, self.fc2 = Attention(), nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.fc2(F.gelu(self.fc1(x)))


def transformer():
    torch.manual_seed(0)
    return nn.Sequential(*[Block() for _ in range(LAYERS)]).double().eval()


def made(method, targets=ALL, **changes):
    model = transformer()
    adapter = attach(model, AdapterConfig(method, RANK, alpha=0.7, targets=targets, **changes))
    randomise(adapter)
    return model, adapter, {key: value.detach() for key, value in adapter.factors.items()}


def delta(adapter, path):
    """in x out"""
    return adapter.delta(path).detach().T


def test_the_side_of_the_heads_is_told_by_the_name():
    sides = {target.path: target.heads for target in find_targets(transformer(), ALL)}
    assert {name: sides[f"1.{name}"] for name in ("attn.q_proj", "attn.v_proj", "attn.o_proj", "fc1", "fc2")} == {
        "attn.q_proj": "out", "attn.v_proj": "out", "attn.o_proj": "in", "fc1": "", "fc2": "",
    }  # fmt: skip
    from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    gpt2 = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    found = {t.path.split("layer.0.")[-1]: t.heads for t in find_targets(bert, "query,output.dense")}
    assert found == {"attention.self.query": "out", "attention.output.dense": "in", "output.dense": ""}
    found = {t.path: t.heads for t in find_targets(gpt2, "c_attn,c_proj")}
    assert found == {"h.0.attn.c_attn": "out", "h.0.attn.c_proj": "in", "h.0.mlp.c_proj": ""}


def test_lorta_has_the_heads_on_their_own_side():
    """Blocks of heads on the outputs of q, k and v, of the transpose behind the attention: the same five factors."""
    model, adapter, f = made("lorta-auto", targets="q_proj,k_proj,v_proj,o_proj")
    for layer in range(LAYERS):
        for p, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            rows = f["C_H"] * f["C_L"][layer] * f["C_P"][p]
            blocks = torch.cat([f["A"] @ (row * f["B"]).T for row in rows], 1)
            want = 0.7 / RANK * (blocks.T if name == "o_proj" else blocks)
            assert_close(delta(adapter, f"{layer}.attn.{name}"), want)
    assert [value.shape[0] for value in f.values()] == [WIDTH, HEADS, LAYERS, 4, SIZE]


def test_cara_has_two_tensors_and_the_slices_of_the_paper():
    """Slice k = 9 l + (o, fc1 x 4, fc2 x 4) of S_k = sum_r w_r P1[k,r] P2[:,r] P3[:,r]: S^T but for fc2."""
    model, adapter, f = made("cara", widths="chunk")
    first = torch.einsum("r,lpr,ir,hr,jr->lpihj", f["w"], f["A1"], f["A2"], f["A3"], f["A4"]).flatten(-2)
    second = torch.einsum("r,lkr,ar,br->lkab", f["w2"], f["P1"], f["P2"], f["P3"])
    assert first.shape == (LAYERS, 3, WIDTH, WIDTH) and second.shape == (LAYERS, 9, WIDTH, WIDTH)
    for layer in range(LAYERS):
        for p, name in enumerate(("q_proj", "k_proj", "v_proj")):
            assert_close(delta(adapter, f"{layer}.attn.{name}"), 0.7 * first[layer, p])
        slices = second[layer]
        assert_close(delta(adapter, f"{layer}.attn.o_proj"), 0.7 * slices[0].T)
        assert_close(delta(adapter, f"{layer}.fc1"), 0.7 * torch.cat([one.T for one in slices[1:5]], 1))
        assert_close(delta(adapter, f"{layer}.fc2"), 0.7 * torch.cat(list(slices[5:9]), 0))
    biases = {key: len(value) for key, value in f.items() if key.endswith(".b")}
    assert sorted(biases.values()) == [WIDTH, WIDTH, 4 * WIDTH]  # shared by all layers


def test_biases_are_inside_the_scale_and_merged(tmp_path):
    model, adapter, f = made("cara", widths="chunk")
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    fc1, want = model[1].fc1, model(x)
    bias = next(value for key, value in f.items() if key.endswith(".b") and len(value) == 4 * WIDTH)
    assert_close(fc1(x), fc1.base(x) + x @ delta(adapter, "1.fc1") + 0.7 * bias)
    before = fc1.base.bias.clone()
    merge(model)
    assert_close(fc1.base.bias, before + 0.7 * bias)
    assert_close(model(x), want)
    unmerge(model)
    assert torch.equal(fc1.base.bias, before) and torch.equal(model(x), want)
    save(model, tmp_path / "adapter")
    other = transformer()
    load(other, tmp_path / "adapter")
    assert torch.equal(other(x), want)


def test_peft_loads_biases_too(tmp_path):
    from peft import PeftModel

    model, adapter, _ = made("cara", widths="chunk")
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = model(x)
    adapter.export_lora(tmp_path / "lora")
    got = PeftModel.from_pretrained(transformer(), tmp_path / "lora").eval()(x)
    assert_close(got, want)
    with pytest.raises(ValueError, match="has biases here, and vllm's LoRA has none"):
        adapter.export_lora(tmp_path / "other", runtime="vllm")


def test_both_tensors_are_swept():
    """CP by columns: a third column of weight zero falls without a change of any output."""
    for targets in (ALL, "q_proj,v_proj"):
        model, adapter, _ = made("cara", widths="chunk", targets=targets)
        with torch.no_grad():
            for weights in ("w", "w2"):
                if weights in adapter.factors:
                    adapter.factors[weights][1] = 0.0
        x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
        want = model(x)
        report = sweep(model, rank=2)
        torch.testing.assert_close(model(x), want, rtol=1e-6, atol=1e-6)  # a fit, to its own tolerance
        assert set(report.after.values()) <= {1, 2} and adapter.factors["A2"].shape == (WIDTH, 2)


def test_biases_need_a_place():
    table = nn.Sequential(nn.Embedding(5, 4))
    with pytest.raises(ValueError, match="target '0': method 'cara' has biases there, and an embedding has none"):
        attach(table, AdapterConfig("cara", 2, targets=("0",)))
    assert type(table[0]) is nn.Embedding


@pytest.mark.parametrize("method", ("fact-tk", "fact-tk-code"))
def test_slices_of_fact_and_of_its_code(method):
    """Frontal slices S_k; its code views the S of fc1 and fc2, (r, r, 4), as (r, 4 r), and the latter transposed."""
    model, adapter, f = made(method, widths="chunk")
    slices = torch.einsum("abc,clk->lkab", f["C"], f["P"])  # of layer, k = q, k, v, o, fc1 x 4, fc2 x 4
    for layer in range(LAYERS):
        first, second = slices[layer, 4:8], slices[layer, 8:12]
        if method == "fact-tk-code":
            one, two = (s.permute(1, 2, 0).reshape(RANK, 4 * RANK) for s in (first, second))
            first, second = one.split(RANK, 1), [block.T for block in two.split(RANK, 1)]
        for k, name in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            assert_close(delta(adapter, f"{layer}.attn.{name}"), 0.7 * f["U"] @ slices[layer, k] @ f["V"])
        assert_close(delta(adapter, f"{layer}.fc1"), 0.7 * torch.cat([f["U"] @ s @ f["V"] for s in first], 1))
        assert_close(delta(adapter, f"{layer}.fc2"), 0.7 * torch.cat([f["U"] @ s @ f["V"] for s in second], 0))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = model(x)
    merge(model)
    assert_close(model(x), want)


def test_mixed_slices_have_one_rank_for_good():
    with pytest.raises(ValueError, match="its slices are mixed with its bonds, so rank is one number"):
        attach(transformer(), AdapterConfig("fact-tk-code", (2, 3, 2), targets=ALL, widths="chunk"))
    with pytest.raises(ValueError, match="sweep: the factors of 'fact-tk-code' are not a chain"):
        sweep(made("fact-tk-code", widths="chunk")[0], rank=2)


def test_cara_without_one_of_its_tensors():
    """Only q, k and v: the factors of the second tensor do not exist, and rank by name may leave it out or not."""
    model = transformer()
    adapter = attach(model, AdapterConfig("cara", {"r": 2, "t": 3}, targets="q_proj,v_proj"))
    assert list(adapter.factors) == ["w", "A1", "A2", "A3", "A4"] and adapter.factors["A1"].shape == (LAYERS, 2, 2)
    with pytest.raises(ValueError, match="rank names r, its bonds are r, t"):
        attach(transformer(), AdapterConfig("cara", {"r": 2}, targets="q_proj,v_proj"))
