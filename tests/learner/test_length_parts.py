"""Texts of a batch are computed by length: the same features, on less padding."""

import pytest
import torch

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.learner.features import StageFeatures
from metalora.learner.generators import SupportSet, make_generator
from metalora.learner.head import PooledFeatures
from metalora.learner.length_parts import by_length
from metalora.learner.readouts import make_readout

TEXTS, TOKENS, VOCABULARY = 40, 24, 50


@pytest.fixture
def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    return BertModel(config).eval()


def padded_texts(*, on_the_left=False):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, TOKENS + 1, (TEXTS, 1), generator=generator)
    mask = (torch.arange(TOKENS) < lengths).long()
    mask = mask.flip(1) if on_the_left else mask
    tokens = torch.randint(1, VOCABULARY, (TEXTS, TOKENS), generator=generator)
    return {"input_ids": tokens * mask, "attention_mask": mask, "of_texts": torch.arange(TEXTS)}


def one_by_one(function, inputs):
    rows = range(len(inputs["attention_mask"]))
    return torch.cat([function({name: value[[row]] for name, value in inputs.items()}) for row in rows])


@pytest.mark.parametrize("on_the_left", [False, True], ids=["padding behind", "padding before"])
def test_parts_are_cut_and_the_order_stays(on_the_left):
    inputs = padded_texts(on_the_left=on_the_left)
    shapes = []

    def weighted_sum(part):
        shapes.append(tuple(part["input_ids"].shape))
        assert len(part["of_texts"]) == len(part["input_ids"])
        return (part["input_ids"] ** 2).sum(1, keepdim=True).float() + part["of_texts"][:, None]

    found = by_length(weighted_sum, inputs)
    tokens = sum(count * length for count, length in shapes)
    assert len(shapes) == 4 and tokens < 0.75 * TEXTS * TOKENS
    torch.testing.assert_close(found, one_by_one(weighted_sum, inputs), rtol=0, atol=0)


def test_without_padding_or_with_few_texts_nothing_is_divided():
    inputs = padded_texts()
    full = inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    few = {name: value[:9] for name, value in inputs.items()}
    for whole in (full, few, torch.rand(40, 3)):
        assert by_length(lambda part: part, whole) is whole


@pytest.mark.parametrize("method", ["lora", "metalora-cp"])
def test_features_and_gradients_are_those_of_the_texts_alone(encoder, method):
    scope = "constant" if method == "lora" else "support"
    config = AdapterConfig(method, 2, targets="linear", condition=ConditionConfig(scope=scope))
    inputs = {name: value for name, value in padded_texts().items() if name != "of_texts"}
    adapter = attach(encoder, config, example=inputs)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    features = StageFeatures(encoder, adapter, hidden=True)
    frozen = features.frozen(inputs)
    condition = None
    if scope == "support":
        generator = make_generator("mapping-net", adapter)
        support = SupportSet(inputs, frozen, torch.arange(TEXTS) % 2)
        condition = generator(features, make_readout("kernel-ridge"), support)

    def adapted(part):
        return features.adapted(part, condition)

    for function in (features.frozen, features.last_layer, adapted):
        torch.testing.assert_close(function(inputs), one_by_one(function, inputs), rtol=1e-4, atol=1e-5)
    parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    gradients = [
        torch.autograd.grad(way.sin().sum(), parameters, allow_unused=True, retain_graph=True)
        for way in (adapted(inputs), one_by_one(adapted, inputs))
    ]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("all_stages", [False, True], ids=["last layer", "all stages"])
def test_a_fine_tuning_reads_the_features_of_a_learner_and_cuts_texts_to_parts(encoder, all_stages):
    inputs = {name: value for name, value in padded_texts().items() if name != "of_texts"}
    adapter = attach(encoder, AdapterConfig("lora", 2, targets="linear"), example=inputs)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    learner = StageFeatures(encoder, adapter)
    expected = (learner.adapted if all_stages else learner.adapted_last_layer)(inputs)
    pooled = PooledFeatures(encoder, adapter, is_text=True, all_stages=all_stages)
    lengths = []
    encoder.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert torch.equal(pooled(inputs), expected) and len(set(lengths)) == 4
