"""Bad input: a table of calls and a fragment of the message; after each the model is as it was."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from metalora import (
    AdapterConfig,
    ConditionConfig,
    adapter_of,
    attach,
    count_params,
    detach,
    find_targets,
    merge,
    save,
    unmerge,
)
from support.adapters import randomise


class Net(nn.Module):
    """One of everything that can and cannot be adapted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.depthwise(self.norm(self.conv(x))).flatten(2).mT
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.fc(x).relu().mean(1))


def config(method="lora", rank=2, targets=("conv", "fc"), **options):
    return AdapterConfig(method=method, rank=rank, targets=targets, **options)


def condition(**options):
    return config("metalora-cp", condition=ConditionConfig(**options))


BAD_ATTACH = {
    "unknown method": (config("lroa"), "unknown method 'lroa'; did you mean 'lora'?"),
    "near name": (config("metalora_tr"), "did you mean 'metalora-tr'?"),
    "near to nothing": (config("zzz"), "unknown method 'zzz' \\(known: adalora, cara, cara-attention, conv-lora"),
    "tasks whose factor is generated": (
        config("metatt-4+1d", tasks=3, generated=("G3",), condition=ConditionConfig(source="tensor", feature_size=4)),
        "tasks=3, but every factor with a task mode, G3, is generated",
    ),
    "a start of PiSSA without a scale": (config("pissa", alpha=-1.0), "needs a scale above zero, got -"),
    "alpha 0": (config(alpha=0.0), "alpha is 0, so ΔW would always be zero"),
    "rank too large": (config(rank=7), "target 'conv': rank 7 of bond 'r' is above 6"),
    "rank of an unknown bond": (
        config("metalora-tr", {"r0": 2, "r9": 2}),
        "rank names r0, r9, its bonds are r0, r1, r2",
    ),
    "rank of a missing bond": (config("metalora-tr", {"r0": 2}), "rank names r0, its bonds are r0, r1, r2"),
    "rank and experts": (config("moe-lora", 3, experts=2), "rank 3 is not a multiple of its 2 experts"),
    "target that matches nothing": (
        config(targets=("cnov",)),
        "target 'cnov' matches no module of Net; did you mean 'conv'?",
    ),
    "one of two targets": (config(targets=("conv", "nothing.*")), "target 'nothing.\\*' matches no module"),
    "everything excluded": (config(exclude=("*",)), "match nothing in Net"),
    "rank too large for one input": (
        config(rank=3, targets="depthwise", method="locon-tucker"),
        "target 'depthwise': rank 3",
    ),
    "a condition for attention": (
        config("metalora-cp", targets=("out_proj",), condition=ConditionConfig(source="tensor", feature_size=4)),
        "target 'attention.out_proj' is a matrix that its module reads itself, and method 'metalora-cp' takes c from",
    ),
    "a bottleneck for attention": (config("loretta-adp", targets=("in_proj_weight",)), "changes the output of a layer"),
    "a bias for attention": (
        config("film", 1, targets=("in_proj_weight",), condition=ConditionConfig(scope="constant")),
        "also adds a bias to the output",
    ),
    "dropout for attention": (config(targets=("in_proj_weight",), dropout=0.1), "has dropout=0.1, which acts on"),
    "a bias of attention": (config(targets=("in_proj_bias",)), "'in_proj_bias' matches no module"),
    "a norm": (config(targets=("norm",)), "BatchNorm2d is not a layer that can be adapted"),
    "a container": (
        config(targets=("attention",)),
        "MultiheadAttention is not a layer .* name the parameter, such as 'attention.in_proj_weight'",
    ),
    "unknown generated": (config(generated=("C",)), "generated names factor 'C' .known: A, B"),
    "unknown factor in init": (config(init={"D": "zeros"}), "init names factor 'D'"),
    "unknown initialisation": (
        config(init={"A": "kaimng"}),
        "unknown initialisation 'kaimng'; did you mean 'kaiming'?",
    ),
    "two zeros": (config(init={"A": "zeros"}), "factors A, B all start at zero"),
    "two zeros in three": (config("multi-lora", init={"B": "zeros"}), "factors B, s all start at zero"),
    "zero core": (config("metalora-tr", init={"C": "zeros"}), "factors B, C all start at zero"),
    "tensor without a width": (condition(source="tensor"), "needs condition.feature_size"),
    "stem without a path": (condition(source="stem", stages=("conv",)), "needs condition.stem"),
    "stem of nothing": (condition(source="stem", stem="cnov"), "no module 'cnov'; did you mean 'conv'?"),
    "stem of a set": (condition(source="stem", stem="conv", scope="support"), "its scope must be 'sample'"),
    "stages of nothing": (condition(stages=("conv", "fx")), "no module 'fx'; did you mean 'fc'?"),
    "stages not told apart": (condition(), "Net has no stages that can be told apart"),
    "no extractor": (condition(source="extractor"), "needs condition.extractor"),
}


def state(model, x):
    """Everything that a failing call must not change."""
    hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()]
    grads = [(n, p.requires_grad) for n, p in model.named_parameters()]
    kinds = [(n, type(m), m.training) for n, m in model.named_modules()]
    return hooks, grads, kinds, {k: v.clone() for k, v in model.state_dict().items()}, model(x)


def unchanged(model, x, before):
    after = state(model, x)
    assert after[:3] == before[:3] and after[3].keys() == before[3].keys()
    assert all(torch.equal(after[3][k], before[3][k]) for k in after[3]) and torch.equal(after[4], before[4])


def base():
    return Net().double().eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)


def bad_attach():
    return [pytest.param(*row, id=n) for n, row in BAD_ATTACH.items()]


@pytest.mark.parametrize("bad, message", bad_attach())
def test_attach_refuses_and_leaves_the_model_as_it_was(bad, message):
    model, x = base()
    model.fc.weight.requires_grad_(False)
    before = state(model, x)
    with pytest.raises(ValueError, match=message):
        attach(model, bad, example=x)
    assert adapter_of(model) is None
    unchanged(model, x, before)
    with torch.no_grad():  # torch multiplies in another order where activations require a gradient
        want = model(x)
        attach(model, config())  # and can be adapted after all
        assert torch.equal(model(x), want)


def test_attach_takes_its_hooks_back_when_the_example_does_not_fit():
    model, x = base()
    before = state(model, x)
    with pytest.raises(RuntimeError):
        attach(model, condition(source="pooled"), example=x[:, :1])
    unchanged(model, x, before)


def nan(model):
    with torch.no_grad():
        adapter_of(model).factors["fc.A"][0, 0] = float("nan")
    merge(model)


def twice(model):
    merge(model)
    try:
        merge(model)
    finally:
        unmerge(model)


BAD_CALLS = {
    "attach twice": (lambda m: attach(m, config()), "Net already has an adapter"),
    "attach a part": (lambda m: attach(nn.ModuleList([m.fc]), config(targets="0.base")), "'0' is adapted already"),
    "attach twice, another method": (lambda m: attach(m, config("metalora-tr")), "detach it first"),
    "merge twice": (twice, "already merged"),
    "merge NaN": (nan, "NaNs detected in the merged weights of target 'fc'"),
    "save without an adapter": (lambda m: save(base()[0], "/tmp/never-written"), "Net has no adapter"),
    "detach without an adapter": (lambda m: detach(base()[0]), "Net has no adapter"),
    "merge without an adapter": (lambda m: merge(base()[0]), "Net has no adapter"),
    "unmerge without an adapter": (lambda m: unmerge(base()[0]), "Net has no adapter"),
    "delta of an unknown target": (
        lambda m: adapter_of(m).delta("cnov"),
        "unknown target 'cnov'; did you mean 'conv'?",
    ),
    "count an unknown method": (lambda m: count_params(config("lroa"), []), "unknown method"),
}


@pytest.mark.parametrize("call, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_calls_on_an_adapted_model_refuse_and_leave_it_as_it_was(call, message):
    model, x = base()
    adapter = attach(model, config())
    randomise(adapter)
    before = model(x)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        call(model)
    assert adapter_of(model) is adapter and not adapter.merged
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, weights[k])}
    if call is nan:
        assert all("fc/A" in k for k in changed)
    else:
        assert not changed and torch.equal(model(x), before)


# ---- what is found instead ----
FOUND = {
    "all": ("all", (), ["conv", "depthwise", "fc"]),
    "linear": ("linear", (), ["fc"]),
    "conv": ("conv", (), ["conv", "depthwise"]),
    "a name": ("head", (), ["head"]),
    "in the order of the model": (("head", "conv"), (), ["conv", "head"]),
    "a glob": (("*c*",), ("attention*", "depthwise"), ["conv", "fc"]),
}


@pytest.mark.parametrize("targets, exclude, want", FOUND.values(), ids=FOUND)
def test_targets_found(targets, exclude, want):
    found = find_targets(base()[0], targets, exclude)
    assert [t.path for t in found] == want


def test_sizes_of_targets_name_their_modes():
    model = nn.Sequential(nn.Conv2d(3, 5, (2, 4)), nn.Conv1d(3, 5, 2), nn.Linear(3, 5), nn.Embedding(3, 5))
    model.extend(
        [nn.Conv2d(6, 4, (2, 4), groups=2), nn.ConvTranspose2d(6, 4, (2, 5), groups=2), nn.Conv3d(3, 5, (2, 3, 4))]
    )
    model.append(GPT2Model(GPT2Config(n_layer=1, n_embd=4, n_head=2, vocab_size=7)).h[0].mlp.c_fc)
    kinds = {t.kind: t.sizes for t in find_targets(model, ("*",))}
    assert kinds == {
        "conv2d": {"in": 3, "out": 5, "kh": 2, "kw": 4},
        "conv1d": {"in": 3, "out": 5, "kw": 2},
        "linear": {"in": 3, "out": 5},
        "embedding": {"in": 3, "out": 5},
        "grouped_conv2d": {"in": 3, "out": 4, "kh": 2, "kw": 4},
        "conv_transpose2d": {"in": 3, "out": 4, "kh": 2, "kw": 5},
        "conv3d": {"in": 3, "out": 5, "kh": 6, "kw": 4},
        "conv1d_gpt2": {"in": 4, "out": 16},
    }


def test_clip_rank_lowers_a_rank_where_needed():
    model, x = base()
    adapter = attach(model, config(rank=7, clip_rank=True, targets=("conv", "fc", "head")))
    assert [adapter.factors[f"{t}.A"].shape[-1] for t in ("conv", "fc", "head")] == [6, 6, 3]


def test_detach_gives_the_model_back():
    model, x = base()
    model.fc.weight.requires_grad_(False)
    before = state(model, x)
    randomise(attach(model, condition(source="pooled"), example=x))
    assert not torch.equal(model(x), before[4]) and not model.fc.base.bias.requires_grad
    merge(model, adapter_of(model).condition(x).mean())
    detach(model)
    unchanged(model, x, before)
