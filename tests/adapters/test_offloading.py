"""accelerate moves the weights of an adapted model to the CPU or to a disk: the output stays, a merge is refused."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import metalora
from metalora import AdapterConfig
from support.adapters import assert_close, attach_random, randomise
from support.holders import HOLDERS

accelerate = pytest.importorskip("accelerate")
TOKENS = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(0))
SIZES = dict(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)


def cpu_offload(model, folder):
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offload(model, folder):
    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def device_map(model, folder):
    places = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "disk",
              "model.rotary_emb": "cpu", "lm_head": "disk"}  # fmt: skip
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


WAYS = pytest.mark.parametrize("move", (cpu_offload, disk_offload, device_map))
METHODS = pytest.mark.parametrize("method", ("lora", "metatt-4d", "metalora-cp", "vera"))


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval().double()


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@WAYS
@METHODS
def test_an_adapter_on_a_model_whose_weights_are_away_gives_what_it_gives_otherwise(method, move, tmp_path):
    models = [llama()]
    models.append(copy.deepcopy(models[0]))
    move(models[1], str(tmp_path))
    outputs = []
    for model in models:
        torch.manual_seed(1)
        attach_random(model, AdapterConfig(method, rank=2, targets="q_proj,v_proj"), std=0.3)
        outputs.append([logits(model) for _ in range(2)])
    for output in (*outputs[0][1:], *outputs[1]):
        assert_close(output, outputs[0][0])


@METHODS
def test_the_output_stays_when_the_weights_of_an_adapted_model_are_moved_away(method):
    model = llama()
    attach_random(model, AdapterConfig(method, rank=2, targets="q_proj,v_proj"), std=0.3)
    before = logits(model)
    cpu_offload(model, None)
    for _ in range(3):
        assert_close(logits(model), before)


def test_factors_are_trained_while_the_base_is_away_and_kept_when_it_comes_back():
    from accelerate.hooks import remove_hook_from_submodules

    model = llama()
    adapter = attach_random(model, AdapterConfig("lora", rank=2, targets="q_proj,v_proj"), std=0.3)
    cpu_offload(model, None)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(2)
    away = logits(model)
    remove_hook_from_submodules(model)
    assert_close(logits(model), away)


def test_a_merge_is_refused_while_the_base_is_away():
    model = llama()
    attach_random(model, AdapterConfig("lora", rank=2, targets="q_proj"), std=0.3)
    cpu_offload(model, None)
    with pytest.raises(
        ValueError, match=r"target 'model.layers.0.self_attn.q_proj'.*meta.*remove_hook_from_submodules"
    ):
        metalora.merge(model)


def test_peft_brings_the_base_back_for_a_merge():
    import peft

    import metalora.peft

    model = peft.get_peft_model(llama(), metalora.peft.TensorNetworkConfig(r=2, target_modules=["q_proj"])).eval()
    randomise(metalora.peft.adapter_of(model), std=0.3)
    before = logits(model)
    cpu_offload(model, None)
    assert_close(logits(model), before)
    model.merge_adapter()
    assert_close(logits(model), before)
    model.unmerge_adapter()
    assert_close(logits(model), before)


def test_experts_whose_weights_are_away_after_attach_give_what_they_gave(tmp_path):
    kind = HOLDERS["experts"]
    model, x = kind.base(), kind.inputs()
    adapter = attach_random(model, AdapterConfig("metatt-4d", rank=2, targets=kind.targets), std=0.3)
    with torch.no_grad():
        want = model(x)
        cpu_offload(model, str(tmp_path))
        assert_close(model(x), want)
        assert_close(model(x), want)
    with pytest.raises(
        ValueError, match="merge: target '0.gate.weight': accelerate keeps its weight on another device"
    ):
        adapter.merge()


def test_experts_whose_weights_are_away_are_refused(tmp_path):
    model = HOLDERS["experts"].base()
    cpu_offload(model, str(tmp_path))
    with pytest.raises(ValueError, match="target '0.gate.weight': accelerate keeps this parameter .* attach first"):
        metalora.attach(model, AdapterConfig("lora", rank=2, targets=HOLDERS["experts"].targets))
    assert metalora.adapter_of(model) is None
