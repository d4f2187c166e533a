"""Which layers are output heads: presets take all others, and the features of a network are what its head reads."""

import copy

import pytest
import timm
import torch
import torchvision
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, find_targets
from metalora.adapters.heads import head_path, output_heads
from metalora.learner.head import PooledFeatures
from support.families import FAMILIES, TEXT, small_model


def all_linear_of_peft(model, task_type=None):
    """Paths of the layers that PEFT's "all-linear" adapts."""
    peft = get_peft_model(copy.deepcopy(model), LoraConfig(r=1, target_modules="all-linear", task_type=task_type))
    return {
        path.removeprefix("base_model.model.") for path, module in peft.named_modules() if hasattr(module, "lora_A")
    }


def linear_targets(model):
    return {target.path for target in find_targets(model, "linear")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_a_head_is_adapted_as_pefts_all_linear_adapts_it(family):
    model = small_model(family)
    assert output_heads(model) == ()
    assert linear_targets(model) == all_linear_of_peft(model)


LANGUAGE_MODELS = ("falcon", "gemma", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi", "qwen2", "qwen3", "bart")


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_a_language_model_keeps_its_output_embeddings_as_in_peft(family):
    model = small_model(family, transformers.AutoModelForCausalLM)
    head = next(path for path, module in model.named_modules() if module is model.get_output_embeddings())
    assert output_heads(model) == (head,)
    assert linear_targets(model) == all_linear_of_peft(model, "CAUSAL_LM")


HEADS = {
    "bert": (transformers.AutoModelForSequenceClassification, "classifier"),
    "distilbert": (transformers.AutoModelForSequenceClassification, "classifier"),
    "modernbert": (transformers.AutoModelForSequenceClassification, "classifier"),
    "roberta": (transformers.AutoModelForSequenceClassification, "classifier.out_proj"),
    "bart": (transformers.AutoModelForSequenceClassification, "classification_head.out_proj"),
    "llama": (transformers.AutoModelForSequenceClassification, "score"),
    "t5": (transformers.AutoModelForTokenClassification, "classifier"),
    "qwen2": (transformers.AutoModelForQuestionAnswering, "qa_outputs"),
    "electra": (transformers.AutoModelForPreTraining, "discriminator_predictions.dense_prediction"),
    "vit": (transformers.AutoModelForImageClassification, "classifier"),
    "wav2vec2": (transformers.AutoModelForCTC, "lm_head"),
    "segformer": (transformers.AutoModelForSemanticSegmentation, "decode_head.classifier"),
}


@pytest.mark.parametrize("family", HEADS)
def test_the_head_of_a_task_is_left_out_and_nothing_else(family):
    make, head = HEADS[family]
    model = small_model(family, make)
    assert output_heads(model) == (head,)
    assert linear_targets(model) == all_linear_of_peft(model) - {head}


TIMM = {
    "resnet10t": ("fc",),
    "vit_tiny_patch16_224": ("head",),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
    "convnext_atto": ("head.fc",),
    "efficientnet_lite0": ("classifier",),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_says_its_head_also_when_it_is_empty(name):
    with torch.device("meta"):
        assert output_heads(timm.create_model(name)) == TIMM[name]
        headless = timm.create_model(name, num_classes=0)
    assert output_heads(headless) == TIMM[name]
    assert all(isinstance(headless.get_submodule(path), nn.Identity) for path in TIMM[name])
    every_linear = {path for path, module in headless.named_modules() if isinstance(module, nn.Linear)}
    assert not every_linear or linear_targets(headless) == every_linear


TORCHVISION = {
    "resnet18": "fc",
    "vgg11": "classifier.6",
    "squeezenet1_1": "classifier.1",  # a convolution
    "mobilenet_v3_small": "classifier.3",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "convnext_tiny": "classifier.2",
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_the_heads_of_torchvision(name):
    with torch.device("meta"):
        assert output_heads(getattr(torchvision.models, name)()) == (TORCHVISION[name],)


def block():
    return nn.TransformerEncoderLayer(8, 2, 8)


class Wrapper(nn.Module):
    """A user's own network around another one."""

    def __init__(self, encoder, **parts):
        super().__init__()
        self.encoder = encoder
        for name, part in parts.items():
            self.register_module(name, part)


PLAIN = {
    "the last layer": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), ("2",)),
    "the last layer of stages": (lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 2))),
                                 ("1.0",)),
    "a part of the last block": (lambda: nn.TransformerEncoder(block(), 2, enable_nested_tensor=False), ()),
    "a convolution is last": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 1, 1)), ()),
    "an encoder of transformers": (lambda: Wrapper(small_model("bert")), ()),
    "its classifier": (lambda: Wrapper(small_model("bert"), out=nn.Linear(16, 2)), ("out",)),
    "a whole model of transformers": (
        lambda: Wrapper(small_model("bert", transformers.AutoModelForMaskedLM)),
        ("encoder.cls.predictions.decoder",),
    ),
    "an encoder of timm": (lambda: Wrapper(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1)),
                           ("encoder.head",)),
    "no layers": (nn.ReLU, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN)
def test_the_head_of_a_users_own_network(case):
    make, heads = case
    assert output_heads(make()) == heads


def test_an_adapted_head_is_still_the_head():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    attach(model, AdapterConfig("lora", 1, targets=("0", "1")))
    assert head_path(model) == "1"


def test_a_preset_adapts_the_last_projection_of_a_model_without_a_head():
    model = transformers.LlamaModel(transformers.LlamaConfig(**TEXT))
    adapter = attach(model, AdapterConfig("lora", rank=2, targets="all"))
    assert len(adapter.layers) == 14 and "layers.1.mlp.down_proj" in adapter.layers


@pytest.mark.parametrize("family", ("vit", "dinov2", "swin"))
def test_the_features_of_a_model_without_a_head_are_its_output(family):
    model = small_model(family)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        want = model(images).last_hidden_state.mean(1)
        torch.testing.assert_close(PooledFeatures(model, None)(images), want)
        condition = ConditionConfig(source="pooled", hidden=4)
        config = AdapterConfig("metalora-cp", 2, targets="linear", condition=condition)
        adapter = attach(model, config, example=images)
        torch.testing.assert_close(adapter.features(images), want)


def test_the_features_of_a_network_of_timm_without_a_head_are_what_the_head_would_read():
    model = timm.create_model("resnet10t", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(PooledFeatures(model, None)(images), model(images))


def test_the_output_of_an_encoder_decoder_is_no_source_of_its_answer():
    condition = ConditionConfig(source="pooled", hidden=4)
    with pytest.raises(ValueError, match="'decoder.* of T5Model reads the answer"):
        attach(small_model("t5"), AdapterConfig("metalora-cp", 2, targets="q,v", condition=condition))
