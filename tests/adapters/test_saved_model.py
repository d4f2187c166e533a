"""`save_pretrained` and the checkpoints of transformers' Trainer, of a model with an adapter of `metalora.attach`."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainingArguments,
)

import metalora
from metalora import AdapterConfig
from metalora.adapters.saved_model import ADAPTER_FILE
from support.adapters import attach_random

TOKENS = torch.randint(3, 50, (4, 5), generator=torch.Generator().manual_seed(0))
SIZES = dict(vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
METHODS = pytest.mark.parametrize("method", ("lora", "metatt-4d", "vera", "loretta-adp"))


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options)).eval()


def adapted(method="lora"):
    model = llama()
    torch.manual_seed(1)
    return model, attach_random(model, AdapterConfig(method, rank=2, targets="q_proj,v_proj"), std=0.3)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@METHODS
def test_a_saved_model_is_the_base_with_the_adapter_in_a_file_next_to_it(method, tmp_path):
    model, _ = adapted(method)
    model.save_pretrained(tmp_path)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    base = llama().state_dict()
    assert all(torch.equal(value, base[name]) for name, value in loaded.state_dict().items())
    metalora.load(loaded, tmp_path / ADAPTER_FILE)
    assert torch.equal(logits(loaded), logits(model))


def test_a_merged_model_is_saved_as_a_plain_one(tmp_path):
    model, adapter = adapted()
    adapter.merge()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == {*llama().state_dict()}
    assert not (tmp_path / ADAPTER_FILE).exists()
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path).eval()), logits(model))


def test_tied_weights_and_shards(tmp_path):
    model = llama(tie_word_embeddings=True)
    attach_random(model, AdapterConfig("lora", rank=2, targets="q_proj,embed_tokens"), std=0.3)
    model.save_pretrained(tmp_path, max_shard_size=5000)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(llama(tie_word_embeddings=True)))
    metalora.load(loaded, tmp_path / ADAPTER_FILE)
    assert torch.equal(logits(loaded), logits(model))


@METHODS
def test_a_state_with_the_names_of_the_base_is_loaded(method):
    model, _ = adapted(method)
    before = logits(model)
    state = {name: value * 2 for name, value in llama().state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == [] and all(".adapter." in name for name in missing)
    weight = model.model.layers[0].self_attn.q_proj.base.weight
    assert torch.equal(weight, state["model.layers.0.self_attn.q_proj.weight"])
    assert not torch.equal(logits(model), before)


def trainer(model, folder, steps):
    arguments = TrainingArguments(
        str(folder), max_steps=steps, save_steps=2, per_device_train_batch_size=2, learning_rate=0.05, seed=3,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=100, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    return Trainer(model, arguments, train_dataset=rows)


def test_a_checkpoint_of_the_trainer_continues_as_if_it_had_not_stopped(tmp_path):
    reference, adapter = adapted()
    trainer(reference, tmp_path / "all", 4).train()
    first, _ = adapted()
    trainer(first, tmp_path / "part", 2).train()
    second, resumed = adapted()
    trainer(second, tmp_path / "part", 4).train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    assert not torch.equal(logits(reference), logits(first))
    for name, value in adapter.factors.items():
        torch.testing.assert_close(resumed.factors[name], value)


def test_copies_save_themselves_and_detach_gives_the_verb_back(tmp_path):
    model, adapter = adapted()
    for number, twin in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        with torch.no_grad():
            metalora.adapter_of(twin).factors["model.layers.0.self_attn.q_proj.A"].mul_(2)
        twin.save_pretrained(tmp_path / str(number))
        loaded = llama()
        metalora.load(loaded, tmp_path / str(number) / ADAPTER_FILE)
        assert torch.equal(logits(loaded), logits(twin)) and not torch.equal(logits(twin), logits(model))
    adapter.detach()
    assert "save_pretrained" not in vars(model)
    model.save_pretrained(tmp_path / "base")
    assert not (tmp_path / "base" / ADAPTER_FILE).exists()


# ---- experts, whose entries transformers converts ------------------------------------------------------------------
EXPERTS = ("experts.gate_up_proj", "experts.down_proj", "gate.weight")


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=4)).eval()


def adapted_experts(method, targets):
    model = mixtral()
    torch.manual_seed(1)
    return model, attach_random(model, AdapterConfig(method, rank=2, targets=targets), std=0.3)


@pytest.mark.parametrize("method", ("lora", "metatt-4d"))
@pytest.mark.parametrize("targets", (EXPERTS, ("q_proj", *EXPERTS)), ids=("experts", "experts and layers"))
def test_adapted_experts_are_saved_as_those_of_the_base(method, targets, tmp_path):
    model, adapter = adapted_experts(method, targets)
    model.save_pretrained(tmp_path / "live")
    loaded = MixtralForCausalLM.from_pretrained(tmp_path / "live").eval()
    base = mixtral().state_dict()
    assert all(torch.equal(value, base[name]) for name, value in loaded.state_dict().items())
    metalora.load(loaded, tmp_path / "live" / ADAPTER_FILE)
    assert torch.equal(logits(loaded), logits(model))
    twin, _ = adapted_experts(method, targets)
    torch.nn.init.zeros_(next(metalora.adapter_of(twin).parameters()))
    state = load_file(tmp_path / "live" / "model.safetensors")
    missing, _ = twin.load_state_dict(state, strict=False)  # as the Trainer does, which knows no conversions
    assert not [name for name in missing if ".adapter." in name]
    assert torch.equal(logits(twin), logits(model))
    adapter.merge()
    model.save_pretrained(tmp_path / "merged")
    plain = MixtralForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(plain), logits(model)) and not (tmp_path / "merged" / ADAPTER_FILE).exists()
    assert not [name for name in load_file(tmp_path / "merged" / "model.safetensors") if "adapter" in name]
