"""`add_weighted_adapter` of the tuner: LoRAs as PEFT's own model combines them, and other methods by their Delta W."""

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertModel

import metalora
import metalora.peft as mp

IDS = torch.arange(3 * 7).reshape(3, 7) % 50


def bert():
    torch.manual_seed(1)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=64)
    return BertModel(BertConfig(**sizes)).eval()


def output(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS)[0]


TARGETS = {"first": ["query", "value"], "second": ["query", "dense"]}
WEIGHTS = [0.7, 0.4]
CONFIGS = {
    "first": lambda: mp.MetaTTConfig(r=3, target_modules=["query", "value"]),
    "second": lambda: mp.TensorNetworkConfig(method="vera", r=4, target_modules=["query", "attention.output.dense"]),
    "tasks": lambda: mp.TensorNetworkConfig(method="mtl-lora", r=2, tasks=3, target_modules=["query"]),
    "generated": lambda: mp.MetaLoRAConfig(r=2, target_modules=["query"]),
    "whole": lambda: mp.LoTRConfig(r=2, target_modules=["query"], modules_to_save=["pooler"]),
}


def wrapped(names):
    """A model with these adapters, with random factors in place of training."""
    model = get_peft_model(bert(), CONFIGS[names[0]](), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, CONFIGS[name]())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "metalora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return model


TYPES = {
    "svd": {},
    "cat": {},
    "svd of a rank": {"svd_rank": 2},
    "ties_svd": {"density": 0.5, "svd_rank": 3, "majority_sign_method": "frequency"},
    "magnitude_prune_svd": {"density": 0.3, "svd_rank": 5},
    "dare_linear_svd": {"density": 0.999999, "svd_rank": 3},
    "dare_ties_svd": {"density": 0.999999, "svd_rank": 3},
}


@pytest.mark.parametrize("name, options", TYPES.items(), ids=TYPES)
def test_loras_are_combined_as_by_peft(name, options):
    """DARE draws other numbers than PEFT, so that its density here is one at which nothing is dropped."""
    kind = name.split(" ")[0]
    theirs = get_peft_model(
        bert(), LoraConfig(r=3, lora_alpha=3, target_modules=TARGETS["first"], init_lora_weights=False), "first"
    )
    theirs.add_adapter(
        "second", LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS["second"], init_lora_weights=False)
    )
    ours = get_peft_model(bert(), mp.TensorNetworkConfig(r=3, target_modules=TARGETS["first"]), adapter_name="first")
    ours.add_adapter("second", mp.TensorNetworkConfig(r=2, target_modules=TARGETS["second"]))
    with torch.no_grad():
        for adapter_name in TARGETS:
            adapter = mp.adapter_of(ours, adapter_name)
            for path in adapter.targets:
                layer = theirs.base_model.model.get_submodule(path)
                adapter.factors[f"{path}.A"].copy_(layer.lora_A[adapter_name].weight.mT)
                adapter.factors[f"{path}.B"].copy_(layer.lora_B[adapter_name].weight.mT)
    for model in (theirs, ours):
        model.add_weighted_adapter(["first", "second"], WEIGHTS, "both", combination_type=kind, **options)
        model.set_adapter("both")
    assert (output(ours) - output(bert())).abs().max() > 0.01
    torch.testing.assert_close(output(ours), output(theirs), rtol=1e-3, atol=1e-4)


def test_other_methods_add_up_and_the_result_is_saved(tmp_path):
    model, plain = wrapped(["first", "second"]), bert()
    with torch.no_grad():
        for name, weight in zip(("first", "second"), WEIGHTS, strict=True):
            for path in mp.adapter_of(model, name).targets:
                plain.get_submodule(path).weight += weight * mp.adapter_of(model, name).delta(path)
    before = output(model)
    model.add_weighted_adapter(["first", "second"], WEIGHTS, "both", combination_type="cat")
    assert model.active_adapters == ["first"] and torch.equal(output(model), before)
    assert not any(parameter.requires_grad for parameter in mp.adapter_of(model, "both").parameters())
    model.set_adapter("both")
    torch.testing.assert_close(output(model), output(plain), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    again = PeftModel.from_pretrained(bert(), tmp_path / "both")
    torch.testing.assert_close(output(again), output(model), rtol=0, atol=0)


REFUSED = {
    "linear": (["first"], {"combination_type": "linear"}, "A and B of LoRAs.*choose 'cat' .exact. or 'svd'"),
    "ties": (["first"], {"combination_type": "ties", "density": 0.5}, "choose 'ties_svd'"),
    "an unknown type": (["first"], {"combination_type": "svdd"}, "combination_type='svdd'.*'svd'"),
    "no density": (["first"], {"combination_type": "ties_svd"}, "density=None"),
    "a density of a sum": (["first"], {"density": 0.5}, "prunes nothing"),
    "a rank of cat": (["first"], {"combination_type": "cat", "svd_rank": 2}, "whose ranks add"),
    "a clamp": (["first"], {"svd_clamp": 0.9}, "svd_clamp and svd_driver are not supported"),
    "an unknown adapter": (["first", "firs"], {}, "adapter 'firs'.*'first'"),
    "a name that is taken": (["first"], {"adapter_name": "first"}, "an adapter 'first' already"),
    "weights": (["first"], {"weights": [1.0, 2.0]}, "2 weights for 1 adapters"),
    "tasks": (["tasks"], {}, "adapter 'tasks': .* has 3 tasks"),
    "no condition": (["generated"], {}, "adapter 'generated': .* pass condition="),
    "whole modules": (["whole"], {}, "has modules_to_save"),
}


@pytest.mark.parametrize("names, options, message", REFUSED.values(), ids=REFUSED)
def test_refusals(names, options, message):
    model = wrapped([name for name in names if name in CONFIGS])
    before = {*model.peft_config}
    arguments = {"adapters": names, "weights": [1.0] * len(names), "adapter_name": "new"} | options
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(**arguments)
    assert {*model.peft_config} == before


def test_the_arguments_are_those_of_peft():
    import inspect

    ours = inspect.signature(mp.TensorNetworkModel.add_weighted_adapter).parameters
    theirs = inspect.signature(peft.LoraModel.add_weighted_adapter).parameters
    assert list(ours) == list(theirs)
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()}


def test_dare_draws_from_the_generator_of_torch():
    drawn = []
    for seed in (3, 3, 4):
        model = wrapped(["first"])
        torch.manual_seed(seed)
        model.add_weighted_adapter(["first"], [1.0], "new", combination_type="dare_linear_svd", density=0.5)
        drawn.append(metalora.low_rank_updates(mp.adapter_of(model, "new")))
    first, same, other = ({path: update.up @ update.down for path, update in updates.items()} for updates in drawn)
    assert all(torch.equal(first[path], same[path]) and not torch.equal(first[path], other[path]) for path in first)
