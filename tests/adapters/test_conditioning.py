"""Conditions: where they come from, what the mapping net makes of them, and what a forward does with them."""

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, Condition, ConditionConfig, adapter_of, attach, detach
from metalora.adapters.conditioning.features import between_class_share, channel_statistics, token_weights
from metalora.adapters.conditioning.mapping_net import Conditioner
from oracles import conditioning as oracle
from support.adapters import randomise
from support.cases import CASES, attach_case, features
from support.conv_net import BODY, SOURCES, conv_net, images
from support.layers import LAYERS
from support.operations import operations_of

GENERATING = ("metalora-cp", "metalora-tr", "metalora-square", "moe-lora")


def adapt_conv_net(method="metalora-cp", source="stages", extractor=None, random=True, **condition):
    model = conv_net()
    condition = ConditionConfig(**{"hidden": 5, **SOURCES.get(source, {"source": source}), **condition})
    config = AdapterConfig(method=method, rank=2, experts=2, targets=BODY, condition=condition)
    adapter = attach(model, config, example=images(1), extractor=extractor)
    if random:
        randomise(adapter)
    return model, adapter


def small_extractor():
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).double()


def gradients(adapter):
    found = {n: p.grad.clone() for n, p in adapter.named_parameters() if p.grad is not None}
    adapter.zero_grad()
    return found


@pytest.mark.parametrize(
    "shapes", [{"A": (2, 2), "B": (4,)}, {"A": (2, 3), "B": (4,), "C": ()}], ids=["equal", "other"]
)
@pytest.mark.parametrize("heads", ["target", "shared"])
def test_factors_are_generated_together_as_each_alone(heads, shapes):
    """c = c0 + numbers for each factor, and the penalty is the mean over the factors of their mean squares."""
    torch.manual_seed(0)
    conditioner = Conditioner(ConditionConfig(source="tensor", heads=heads, hidden=3), 5, shapes, seed=0)
    features = torch.randn(3, 5)
    centre = {key: torch.randn(shape) for key, shape in shapes.items()}
    condition = conditioner(features, None, centre)
    numbers = conditioner.mapping_net(features)  # a feature that is standardised already, and no bound that matters
    numbers = conditioner.config.bound * torch.tanh(numbers / conditioner.config.bound)
    offsets = conditioner.mapping_net.split(numbers)
    for (key, shape), offset in zip(shapes.items(), offsets, strict=True):
        torch.testing.assert_close(condition.values[key], centre[key] + offset.view(3, *shape))
    torch.testing.assert_close(condition.penalty, sum(offset.square().mean() for offset in offsets) / len(shapes))


def test_features_whose_sum_is_too_large_are_finite():
    conditioner = Conditioner(ConditionConfig(source="tensor"), 2, {"c": (2,)}, seed=0)
    assert torch.isfinite(conditioner(torch.full((2, 2), 3e38), None, {"c": torch.ones(2)}).values["c"]).all()
    with pytest.raises(ValueError, match=r"not finite \(NaN or infinite\) in examples \[1\]"):
        conditioner(torch.tensor([[1.0, 2.0], [torch.inf, -torch.inf]]), None, {"c": torch.ones(2)})


# ---- the forward and its condition ----------------------------------------------------------------------------------
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
@pytest.mark.parametrize("source", (*SOURCES, "extractor"))
@pytest.mark.parametrize("method", GENERATING)
def test_forward_is_forward_with_the_condition_of_its_inputs(method, source, training):
    model, adapter = adapt_conv_net(method, source, small_extractor() if source == "extractor" else None)
    x = images()
    model.train(training)
    condition = adapter.condition(x)
    assert len(condition) == 3 and torch.equal(model(x), model(x, condition=condition))
    assert not torch.equal(model(x), model(x, condition=condition.mean()))
    assert adapter.current().values is None and model.training == training


@pytest.mark.parametrize("source", (*SOURCES, "extractor"))
def test_a_batch_of_one_in_eval_is_its_row_of_the_batch(source):
    model, adapter = adapt_conv_net("metalora-tr", source, small_extractor() if source == "extractor" else None)
    x = images()
    # 1e-5: features are float32 statistics
    torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-5, atol=1e-5)


FORWARDS = {"stem": 1, "stages": 2, "pooled": 2, "extractor": 1}


@pytest.mark.parametrize("source", FORWARDS)
def test_number_of_backbone_passes(source):
    """The stem is read in the same pass; stages and pooled run the frozen backbone once more."""
    model, adapter = adapt_conv_net("metalora-cp", source, small_extractor() if source == "extractor" else None)
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    model(images())
    assert len(calls) == FORWARDS[source]


@pytest.mark.parametrize("source", SOURCES)
def test_features_are_statistics_of_the_frozen_network(source):
    """Stages: mean and standard deviation per channel; pooled: the input of the head; adapter off, eval mode."""
    model, adapter = adapt_conv_net("metalora-cp", source)
    x = images()
    model.train()
    got = adapter.features(x)
    assert model.training and model[1].training and not got.requires_grad and got.dtype == torch.float32
    detach(model.eval())
    outputs = {"stages": [model[0](x), model[:3](x)], "stem": [model[:2](x)]}.get(source)
    want = model[:5](x)
    if outputs:
        want = torch.cat([s for y in outputs for s in (y.mean((2, 3)), y.flatten(2).std(2, correction=0))], 1)
    # 1e-5: float32, with 1e-6 under the root
    torch.testing.assert_close(got.double(), want.detach(), rtol=1e-4, atol=1e-5)


def test_two_forwards_with_different_conditions_before_one_backward():
    model, adapter = adapt_conv_net("metalora-tr")
    x, y = images(), images() + 1
    model(x).square().sum().backward()
    first = gradients(adapter)
    model(y).square().sum().backward()
    second = gradients(adapter)
    a, b = model(x), model(y)
    (b.square().sum() + a.square().sum()).backward()
    for name, grad in gradients(adapter).items():
        torch.testing.assert_close(grad, first[name] + second[name], rtol=1e-9, atol=1e-9)


def test_fixed_condition_serves_every_forward_until_it_is_lifted():
    model, adapter = adapt_conv_net()
    x = images()
    own, fixed = model(x), adapter.condition(images(1) + 3).detach()
    adapter.fix(fixed)
    assert torch.equal(model(x), model(x, condition=fixed)) and not torch.equal(model(x), own)
    adapter.fix(None)
    assert torch.equal(model(x), own)


def test_disabled_is_the_base():
    model, adapter = adapt_conv_net()
    x = images()
    with adapter.disabled():
        off = model(x)
    on = model(x)
    detach(model)
    assert torch.equal(model(x), off) and not torch.equal(on, off)


def test_mapping_inputs_of_a_hugging_face_model():
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        n_layer=2, n_embd=8, n_head=2, vocab_size=13, n_positions=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = GPT2Model(config).double().eval()
    inputs = {"input_ids": torch.randint(13, (3, 6)), "attention_mask": torch.ones(3, 6)}
    adapter = attach(model, AdapterConfig(method="metalora-tr", rank=2, targets=("c_attn", "c_proj", "c_fc")))
    randomise(adapter)
    assert {t.kind for t in adapter.targets.values()} == {"conv1d_gpt2"} and len(adapter.targets) == 8
    got = model(**inputs).last_hidden_state
    assert torch.equal(got, model(**inputs, condition=adapter.condition(inputs)).last_hidden_state)
    alone = model(**{k: v[1:2] for k, v in inputs.items()}, condition=adapter.condition(inputs)[1]).last_hidden_state
    torch.testing.assert_close(alone, got[1:2], rtol=1e-9, atol=1e-9)


# ---- the mapping net ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bound", (2.0, 0.5, 0.0))
@pytest.mark.parametrize("heads", ("target", "shared"))
@pytest.mark.parametrize("method", GENERATING)
def test_condition_is_c0_plus_the_bounded_map_of_the_features(method, heads, bound):
    model, adapter = adapt_conv_net(method, "tensor", feature_size=7, heads=heads, bound=bound, clamp=1.5)
    adapter.calibrate(torch.randn(9, 7) * 3 + 1)
    conditioner, seen = adapter.conditioner, torch.randn(4, 7) * 5
    net = conditioner.mapping_net.state_dict()
    condition = adapter.condition(seen)
    centres = {key: adapter.factors[key] for key in condition.values}
    offsets = []
    for i in range(4):
        z = oracle.standardised(seen[i].tolist(), conditioner.mean.tolist(), conditioner.std.tolist(), 1.5)
        made = oracle.generated(net, z, [c.detach() for c in centres.values()], bound)
        for value, want in zip(condition.values.values(), made, strict=True):
            torch.testing.assert_close(value[i], want, rtol=1e-9, atol=1e-9)
        offsets.append([(m - c.detach()).square().mean() for m, c in zip(made, centres.values(), strict=True)])
    torch.testing.assert_close(condition.penalty, torch.tensor(offsets).mean().double(), rtol=1e-6, atol=1e-6)


def test_heads_per_target_and_shared_differ_in_size_as_told():
    """(6 + 1) 5 in the trunk; per target 2 heads of 2; shared one head of 2 and two embeddings of 5."""
    for heads, head in (("target", 4 * 6), ("shared", 2 * 6 + 2 * 5)):
        model, adapter = adapt_conv_net("metalora-cp", "tensor", feature_size=6, heads=heads)
        assert sum(p.numel() for p in adapter.conditioner.parameters()) == 7 * 5 + head


def test_neutral_features_and_a_silent_head_give_c0():
    model, adapter = adapt_conv_net("metalora-tr", "tensor", feature_size=7)
    with torch.no_grad():
        for parameter in adapter.conditioner.mapping_net.head.parameters():
            parameter.zero_()
    for condition in (adapter.neutral(), adapter.condition(features(2))):
        for key, value in condition.values.items():
            assert all(torch.equal(v, adapter.factors[key]) for v in value)


# ---- calibration ----------------------------------------------------------------------------------------------------
def test_calibration_standardises_and_takes_several_batches():
    model, adapter = adapt_conv_net("metalora-cp", "stages")
    x = images(6)
    adapter.calibrate([x[:2], x[2:]])
    mean, std = adapter.conditioner.mean.clone(), adapter.conditioner.std.clone()
    adapter.calibrate(x)
    # 1e-5: float32 features, batches of another size
    torch.testing.assert_close(adapter.conditioner.mean, mean, rtol=1e-5, atol=1e-5)
    raw = adapter.features(x).double()
    torch.testing.assert_close(mean, raw.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(std, raw.std(0).clamp_min(1e-3), rtol=1e-4, atol=1e-5)
    standard = adapter.condition(x).features
    torch.testing.assert_close(standard.mean(0), torch.zeros_like(mean), rtol=1e-4, atol=1e-4)
    assert adapter.conditioner.mean.dtype == torch.float64 and not adapter.conditioner.mean.requires_grad


def test_calibration_ignores_features_that_do_not_vary():
    model, adapter = adapt_conv_net("metalora-cp", "tensor", feature_size=2)
    adapter.calibrate(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert torch.isfinite(adapter.condition(torch.tensor([[2.0, 5.0]])).vector()).all()
    assert adapter.condition(torch.tensor([[2.0, 5.0]])).features.abs().max() < 1e-6


# ---- dropout of conditions and of features ---------------------------------------------------------------------------
@pytest.mark.parametrize("option", ("dropout", "descriptor_dropout"))
def test_condition_dropout_changes_only_training(option):
    """At probability 1: a training condition is c0 (or that of neutral features); eval is as without."""
    model, adapter = adapt_conv_net("metalora-cp", "tensor", feature_size=7, **{option: 1.0})
    seen = features(4)
    model.train()
    dropped = adapter.condition(seen).vector()
    want = adapter.condition(torch.zeros(1, 7)).vector()
    if option == "dropout":
        want = torch.cat([adapter.factors[f"{t}.c"] for t in BODY])[None]
    torch.testing.assert_close(dropped, want.expand(4, -1), rtol=1e-12, atol=1e-12)
    model.eval()
    kept = adapter.condition(seen).vector()
    assert not torch.isclose(kept, dropped).all(1).any()
    [net] = [m for m in adapter.conditioner.modules() if type(m).__name__ == "MappingNet"]
    for i in range(4):
        made = oracle.generated(
            net.state_dict(), seen[i].clamp(-4, 4).tolist(), [adapter.factors[f"{t}.c"].detach() for t in BODY], 2.0
        )
        torch.testing.assert_close(kept[i], torch.cat(made), rtol=1e-9, atol=1e-9)


def test_condition_dropout_drops_whole_examples_at_its_rate():
    model, adapter = adapt_conv_net("metalora-cp", "tensor", feature_size=7, dropout=0.25)
    model.train()
    centre = torch.cat([adapter.factors[f"{t}.c"] for t in BODY])
    same = adapter.condition(features(1).expand(2000, -1)).vector() == centre
    assert torch.equal(same.any(1), same.all(1))
    assert 0.2 < same.all(1).double().mean() < 0.3  # 500 expected, deviation 19


def test_rank_dropout_changes_only_training():
    model, adapter, x, condition = attach_case(CASES["metalora-cp-c"], LAYERS["linear"], dropout=0.5)
    kept = model(x, **condition)
    assert torch.equal(kept, model(x, **condition))
    model.train()
    assert not torch.equal(model(x, **condition), kept)


# ---- scope support --------------------------------------------------------------------------------------------------
def support(labelled):
    return adapt_conv_net("metalora-tr", "tensor", scope="support", labelled=labelled, feature_size=7)


@pytest.mark.parametrize("labelled", (True, False))
def test_a_support_set_gives_one_condition_whatever_its_order(labelled):
    model, adapter = support(labelled)
    seen, labels, order = torch.randn(8, 7), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0]), torch.randperm(8)
    one, two = adapter.condition(seen, labels), adapter.condition(seen[order], labels[order])
    assert len(one) == 1
    # 1e-5: sums over the set are in float32
    torch.testing.assert_close(one.vector(), two.vector(), rtol=1e-5, atol=1e-5)
    renamed = adapter.condition(seen, 7 - 3 * labels)
    torch.testing.assert_close(one.vector(), renamed.vector(), rtol=1e-5, atol=1e-5)
    other = adapter.condition(seen, labels[order])
    assert torch.allclose(one.vector(), other.vector()) != labelled
    x = images()
    three = Condition.stack([one] * 3)
    torch.testing.assert_close(model(x, condition=one), model(x, condition=three), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("labelled", (True, False))
def test_a_support_set_is_read_as_told(labelled):
    """Labelled: (share of variance between classes - 0.3) / 0.25; else the mean standardised feature."""
    model, adapter = support(labelled)
    seen, labels = torch.randn(8, 7), torch.tensor([0, 0, 1, 1, 1, 2, 2, 0])
    seen[:, 3] = 0.5
    want = (
        [(s - 0.3) / 0.25 for s in oracle.between_class_share(seen, labels)]
        if labelled
        else seen.double().mean(0).tolist()
    )
    [got] = adapter.condition(seen, labels).features.tolist()
    assert got == pytest.approx(want, abs=1e-5)  # float32 sums


# ---- conditions as values -------------------------------------------------------------------------------------------
def some_condition():
    model, adapter = adapt_conv_net("metalora-tr", "tensor", feature_size=7)
    return adapter.condition(features(4))


def same(a, b):
    assert (
        a.values.keys() == b.values.keys() and torch.equal(a.penalty, b.penalty) and torch.equal(a.features, b.features)
    )
    assert all(torch.equal(a.values[k], b.values[k]) for k in a.values)


PICKS = {
    "int": (1, [1]),
    "last": (-1, [3]),
    "slice": (slice(1, 3), [1, 2]),
    "tensor": (torch.tensor([3, 0, 0]), [3, 0, 0]),
    "mask": (torch.tensor([True, False, True, False]), [0, 2]),
}


@pytest.mark.parametrize("index, rows", PICKS.values(), ids=PICKS)
def test_indexing(index, rows):
    condition = some_condition()
    assert len(condition[index]) == len(rows)
    assert torch.equal(condition[index].vector(), condition.vector()[rows])
    assert torch.equal(condition[index].features, condition.features[rows])


def test_mean_stack_vector_and_detach():
    condition = some_condition()
    assert len(condition) == 4 and condition.vector().shape == (4, 2 * 2 * 2)
    assert len(condition.mean()) == 1
    torch.testing.assert_close(condition.mean().vector()[0], sum(condition.vector()) / 4, rtol=1e-12, atol=1e-12)
    again = Condition.stack([condition[0], condition[1:3], condition[3]])
    same(Condition.stack([condition]), condition)
    assert torch.equal(again.vector(), condition.vector()) and torch.equal(again.features, condition.features)
    cut = condition.detach()
    assert condition.vector().requires_grad and condition.penalty.requires_grad
    assert not cut.vector().requires_grad and not cut.penalty.requires_grad
    same(cut, condition.to("cpu"))


def test_save_and_load_round_trip(tmp_path):
    condition = some_condition()
    condition.save(tmp_path / "c")
    same(Condition.load(tmp_path / "c"), condition)
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def test_the_adapter_of_a_model():
    model, adapter = adapt_conv_net()
    assert adapter_of(model) is adapter and adapter_of(conv_net()) is None


# ---- refusals -------------------------------------------------------------------------------------------------------
NAN = torch.tensor([[0.0] * 7, [float("nan")] * 7, [0.0] * 7])
REFUSALS = {
    "NaN features": (lambda a, s: a.condition(NAN), r"not finite .* in examples \[1\]"),
    "infinite features": (lambda a, s: a.condition(NAN.nan_to_num(float("inf"))), r"not finite .* in examples \[1\]"),
    "width": (lambda a, s: a.condition(torch.zeros(3, 6)), r"shape \(3, 6\), expected \(n, 7\)"),
    "axes": (lambda a, s: a.condition(torch.zeros(7)), r"shape \(7,\), expected \(n, 7\)"),
    "calibrate on one": (lambda a, s: a.calibrate(torch.zeros(1, 7)), "at least 2 examples, got 1"),
    "calibrate on equal features": (lambda a, s: a.calibrate(torch.ones(3, 7)), "the same for all 3 examples"),
    "calibrate on NaN": (lambda a, s: a.calibrate(NAN), "not finite"),
    "no labels": (lambda a, s: s.condition(features(4)), "pass labels"),
    "too few labels": (lambda a, s: s.condition(features(4), torch.zeros(3)), "4 examples and 3 labels"),
    "one class": (lambda a, s: s.condition(features(4), torch.zeros(4)), "one class only"),
    "a file that is not there": (lambda a, s: Condition.load("/nowhere/c"), "no such condition file"),
    "a tensor source without condition": (lambda a, s: a.model(images()), "comes from a tensor"),
    "a support without condition": (lambda a, s: s.model(images()), "comes from a support set"),
    "a condition for another batch": (
        lambda a, s: a.model(images(3), condition=a.condition(features(2))),
        "for 2 examples",
    ),
    "delta without condition": (lambda a, s: a.delta("2.0"), "pass condition="),
    "delta of an unknown target": (lambda a, s: a.delta("2.1", a.neutral()), "unknown target '2.1'"),
}


@pytest.mark.parametrize("call, message", REFUSALS.values(), ids=REFUSALS)
def test_refusals_leave_the_adapter_as_it_was(call, message):
    (model, adapter), (_, set_adapter) = adapt_conv_net("metalora-cp", "tensor", feature_size=7), support(True)
    x, condition = images(), adapter.condition(features(3))
    before, mean = model(x, condition=condition), adapter.conditioner.mean.clone()
    with pytest.raises(ValueError, match=message):
        call(adapter, set_adapter)
    assert adapter.current().values is None and torch.equal(adapter.conditioner.mean, mean)
    assert torch.equal(model(x, condition=condition), before)


def test_a_static_adapter_has_no_condition():
    model = conv_net()
    adapter = attach(model, AdapterConfig(rank=2, targets=BODY))
    for use in (adapter.condition, adapter.calibrate):
        with pytest.raises(ValueError, match="no factor is generated"):
            use(images())
    other = adapt_conv_net("metalora-cp", "tensor", feature_size=7)[1].neutral()
    with pytest.raises(ValueError, match="fix: no factor of lora differs by example or task"):
        adapter.fix(other)


def test_a_file_that_is_no_condition(tmp_path):
    (tmp_path / "c").write_bytes(b"not a condition at all")
    with pytest.raises(ValueError, match="not a complete condition file"):
        Condition.load(tmp_path / "c")


def test_the_share_of_a_feature_that_hardly_varies():
    """A constant has a share of 0, whatever the rounding of its mean; a label itself has 1."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    x = torch.stack([labels.float(), torch.full((7,), 0.1), torch.full((7,), 100.1)], dim=1)
    torch.testing.assert_close(between_class_share(x, labels), torch.tensor([1.0, 0.0, 0.0]))


def test_padding_is_no_part_of_the_features():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = channel_statistics(x, token_weights(mask))
    torch.testing.assert_close(found[0], channel_statistics(x[:1, :3])[0])
    torch.testing.assert_close(found[1], channel_statistics(x[1:])[0])
    torch.testing.assert_close(
        channel_statistics(x, token_weights(mask[:, :4])), channel_statistics(x)
    )  # not of this output


@pytest.mark.parametrize("mask", [False, True], ids=["all-positions", "padded"])
def test_statistics_have_the_gradients_of_their_definition(mask):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, requires_grad=True)
    weights = token_weights(torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])) if mask else None
    shares = torch.full((2, 5, 1), 0.2) if weights is None else weights
    mean = (x * shares).sum(1)
    expected = torch.cat([mean, (((x - mean[:, None]).square() * shares).sum(1) + 1e-6).sqrt()], -1)
    found = channel_statistics(x, weights)
    torch.testing.assert_close(found, expected)
    together = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, together), torch.autograd.grad(expected, x, together))
    torch.testing.assert_close(channel_statistics(x.detach(), weights), expected.detach())


class Layers(nn.Sequential):
    def forward(self, x, attention_mask=None):
        return super().forward(x)


@pytest.mark.parametrize("mask, most", [(None, 8), (torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]), 10)])
def test_the_operations_of_the_statistics_of_a_stage(mask, most):
    """Those of the mask are not repeated at each stage; they were, and a stage took 13."""

    def operations_beside_the_forward(stages):
        model = Layers(*(nn.Linear(6, 6) for _ in range(stages)))
        inputs = {"x": torch.randn(2, 5, 6), "attention_mask": mask}
        adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="0"), example=inputs)
        with torch.no_grad(), adapter.disabled():
            return operations_of(adapter.features, inputs) - operations_of(model, **inputs)

    assert (operations_beside_the_forward(6) - operations_beside_the_forward(2)) / 4 <= most


def test_a_channel_that_is_as_good_as_dead_has_no_share():
    x = torch.tensor([[1e-33], [-1e-33], [2e-33], [0.0]])
    assert between_class_share(x, torch.tensor([0, 0, 1, 1])).tolist() == [0.0]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x, scale=1.0):
        return self.body(x * scale)


class Unnamed(Scaled):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize("kind", [Scaled, Unnamed])
def test_a_condition_is_made_from_all_arguments_that_have_names(kind):
    torch.manual_seed(0)
    model = kind()
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="body.0"), example=torch.rand(2, 4))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    x = torch.rand(3, 4)
    seen = x if kind is Unnamed else 3 * x
    expected = model(x, scale=3.0, condition=adapter.condition(seen))
    torch.testing.assert_close(model(x, scale=3.0), expected)


class SentenceEncoder(nn.Module):
    """A model whose forward takes one mapping, as those of sentence-transformers do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.query, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, features, **options):
        return self.head(self.query(self.embedding(features["input_ids"])).tanh().mean(1))


def test_a_model_whose_first_argument_is_a_mapping_makes_its_condition_from_it():
    config = AdapterConfig("metalora-cp", 2, targets="query", condition=ConditionConfig(source="pooled"))
    model, batch = SentenceEncoder(), {"input_ids": torch.tensor([[1, 2], [3, 4]])}
    with pytest.raises(ValueError, match="SentenceEncoder does not run on a tensor .1, 4.,.*example=inputs"):
        attach(model, config)
    assert adapter_of(model) is None
    adapter = attach(model, config, example=(batch,))
    randomise(adapter)
    rows = [model({"input_ids": row[None]}) for row in batch["input_ids"]]
    torch.testing.assert_close(model(batch), torch.cat(rows))
    torch.testing.assert_close(model(batch), model(batch, condition=adapter.condition(batch)))
