"""LoRAs on models of transformers whose paths differ from those of the file, or are equal in two of their parts."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    DeepseekV3Config,
    DeepseekV3Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5Model,
)

from metalora import AdapterConfig, attach, load_lora
from metalora.io.lora.export_kohya import export_kohya
from support.adapters import attach_random
from support.command import metalora_command
from support.unchanged import unchanged

SIZES = dict(vocab_size=60, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def bart():
    return BartModel(BartConfig(
        vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=20,
    ))  # fmt: skip


def t5():
    return T5Model(T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def clip():
    return CLIPModel(CLIPConfig(text_config=SIZES, vision_config=SIZES | {"image_size": 8, "patch_size": 4}))


TOWERS = {
    "BART": (bart, "fc1", "encoder", "decoder", "layers.0.fc1"),
    "T5": (t5, "q", "encoder", "decoder", "block.0.layer.0.SelfAttention.q"),
    "CLIP": (clip, "fc1", "text_model", "vision_model", "encoder.layers.0.mlp.fc1"),
}


@pytest.mark.parametrize("case", TOWERS)
def test_a_tower_of_a_model_gets_its_own_lora_or_a_refusal_with_both_names(case, tmp_path):
    build, name, first, second, path = TOWERS[case]
    base = build()
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=[name], init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    for network in (first, second):
        tower = copy.deepcopy(base.get_submodule(network))
        with unchanged(tower), pytest.raises(ValueError, match=f"{path}.*; to load a part of the file give network="):
            load_lora(tower, tmp_path)
        adapter = load_lora(tower, tmp_path, network=network)
        layer = theirs.base_model.model.get_submodule(f"{network}.{path}")
        torch.testing.assert_close(adapter.delta(path), layer.get_delta_weight("default"))


@pytest.mark.parametrize("case", TOWERS)
def test_a_lora_of_one_tower_alone_is_not_taken_for_one_of_the_other(case, tmp_path):
    build, name, first, second, path = TOWERS[case]
    base = build()
    config = LoraConfig(r=2, target_modules=rf"{first}\..*\.{name}", init_lora_weights=False)
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    assert [*load_lora(copy.deepcopy(base.get_submodule(first)), tmp_path).targets] == [path]
    other = copy.deepcopy(base.get_submodule(second))
    with unchanged(other), pytest.raises(ValueError, match=f"give network='{first}' if it is meant for this one"):
        load_lora(other, tmp_path)
    assert [*load_lora(other, tmp_path, network=first).targets] == [path]


@pytest.mark.parametrize("prefix", ("lora_te_text_model", "lora_te1_text_model", "lora_te", "lycoris_text_model"))
def test_a_text_encoder_of_clip_with_and_without_text_model_in_its_names(prefix, tmp_path):
    name = f"{prefix}_encoder_layers_0_self_attn_q_proj"
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "lora.safetensors")
    text = CLIPTextModel(CLIPTextConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    adapter = load_lora(text, tmp_path / "lora.safetensors")
    [path] = adapter.targets
    assert path.endswith("encoder.layers.0.self_attn.q_proj")
    torch.testing.assert_close(adapter.delta(path), 0.5 * up @ down)


def test_a_text_encoder_of_clip_is_written_with_the_names_that_other_programs_read(tmp_path):
    text = CLIPTextModel(CLIPTextConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    adapter = attach(text, AdapterConfig("lora", 2, targets="q_proj"))
    torch.nn.init.normal_(adapter.factors[f"{next(iter(adapter.targets))}.B"])
    export_kohya(adapter, tmp_path / "lora.safetensors", prefix="lora_te1")
    name = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    assert {key.split(".")[0] for key in load_file(tmp_path / "lora.safetensors")} == {name}
    again = CLIPTextModel(CLIPTextConfig(**SIZES, bos_token_id=1, eos_token_id=2))
    [path] = adapter.targets
    torch.testing.assert_close(load_lora(again, tmp_path / "lora.safetensors").delta(path), adapter.delta(path))


@pytest.mark.parametrize("prefix", ("lora_te_text_model", "lora_te1_text_model", "text_encoder.text_model"))
def test_a_text_encoder_alone_in_a_model_that_holds_a_unet_too(prefix, tmp_path):
    joint = "." if "." in prefix else "_"
    down, up = torch.randn(2, 8), torch.randn(8, 2)
    tensors = {}
    for layer in "01":
        name = prefix + joint + joint.join(("encoder", "layers", layer, "self_attn", "q_proj"))
        tensors |= {f"{name}.lora_down.weight": down.clone(), f"{name}.lora_up.weight": up * (1 + int(layer))}
    save_file(tensors, tmp_path / "lora.safetensors")
    text = CLIPTextModel(CLIPTextConfig(**SIZES | {"num_hidden_layers": 2}, bos_token_id=1, eos_token_id=2))
    unet = torch.nn.ModuleDict({"to_q": torch.nn.Linear(8, 8)})
    adapter = load_lora(torch.nn.ModuleDict({"unet": unet, "text_encoder": text}), tmp_path / "lora.safetensors")
    first, second = sorted(adapter.targets)
    assert first.startswith("text_encoder.")
    torch.testing.assert_close(adapter.delta(first), up @ down)
    torch.testing.assert_close(adapter.delta(second), 2 * up @ down)


def test_a_start_from_the_weight_of_gpt2_which_is_stored_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    base = GPT2Model(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=8)).eval()
    config = LoraConfig(r=2, target_modules=["c_proj"], fan_in_fan_out=True, init_lora_weights="pissa")
    theirs = get_peft_model(copy.deepcopy(base), config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.rand_like(parameter))
    theirs.save_pretrained(tmp_path)
    ids, model = torch.arange(5)[None], copy.deepcopy(base)
    want = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()(ids)[0]
    load_lora(model, tmp_path)
    torch.testing.assert_close(model(ids)[0], want, rtol=1e-4, atol=1e-5)
    # PEFT's OLoRA decomposes the weight as it is stored.
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace("pissa", "olora"))
    with unchanged(base), pytest.raises(ValueError, match="is a Conv1D with a start of olora"):
        load_lora(base, tmp_path)


def test_an_alora_is_refused_by_name(tmp_path):
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    config = LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[55, 56], task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(base), config).save_pretrained(tmp_path)
    with unchanged(base), pytest.raises(ValueError, match="alora_invocation_tokens is .55, 56.: an aLoRA is only"):
        load_lora(base, tmp_path)


def test_dense_layers_that_peft_takes_for_experts_are_said(tmp_path):
    sizes = dict(vocab_size=60, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=2,
                 intermediate_size=20, moe_intermediate_size=8, n_routed_experts=4, n_group=1, topk_group=1,
                 num_experts_per_tok=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
                 v_head_dim=8, first_k_dense_replace=1)  # fmt: skip
    torch.manual_seed(0)
    base = DeepseekV3Model(DeepseekV3Config(**sizes)).eval()
    fresh, other = copy.deepcopy(base), copy.deepcopy(base)
    adapter = attach_random(base, AdapterConfig("lora", 2, targets="layers.0.mlp.*"))
    with pytest.warns(UserWarning, match="PEFT takes 3 targets .* for experts"):
        adapter.export_lora(tmp_path / "lora")
    ids = torch.randint(60, (1, 5))
    with torch.no_grad():
        live, plain = base(ids).last_hidden_state, other(ids).last_hidden_state
        load_lora(other, tmp_path / "lora")
        assert torch.allclose(other(ids).last_hidden_state, live, atol=1e-5) and not torch.allclose(
            live, plain, atol=1e-3
        )
        # Once PEFT has it all, the warning is wrong, and this fails.
        assert not torch.allclose(
            PeftModel.from_pretrained(fresh, tmp_path / "lora")(ids).last_hidden_state, live, atol=1e-3
        )


def classifier():
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3, pad_token_id=0)).eval()


@pytest.fixture
def trained_classifier(tmp_path):
    """A LoRA with a classifier that was trained whole, and what PEFT computes with it."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", init_lora_weights=False)
    peft_model = get_peft_model(classifier(), config).eval()
    with torch.no_grad():
        peft_model.base_model.model.score.weight.normal_()
    peft_model.save_pretrained(tmp_path / "lora")
    ids = torch.tensor([[3, 5, 7, 2]])
    return tmp_path / "lora", ids, PeftModel.from_pretrained(classifier(), tmp_path / "lora").eval()(ids).logits


def test_a_classifier_that_was_trained_whole_is_loaded_left_out_or_refused(trained_classifier):
    path, ids, expected = trained_classifier
    model = classifier()
    with unchanged(model), pytest.raises(ValueError, match="'score' was trained whole.* whole_modules='load'"):
        load_lora(model, path)
    with unchanged(model), pytest.raises(ValueError, match="whole_modules is 'lode'.* 'load'"):
        load_lora(model, path, whole_modules="lode")
    plain = model.score.weight.clone()
    load_lora(model, path, whole_modules="leave_out")
    assert torch.equal(model.score.weight, plain) and not torch.allclose(model(ids).logits, expected)
    model = classifier()
    load_lora(model, path, whole_modules="load")
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_swap_takes_the_classifier_too(trained_classifier):
    path, ids, expected = trained_classifier
    model = classifier()
    adapter = attach(model, AdapterConfig("lora", 2, targets="q_proj"))
    with pytest.raises(ValueError, match="'score' was trained whole"):
        adapter.swap(path)
    assert not any(adapter.delta(target).any() for target in adapter.targets)
    adapter.swap(path, whole_modules="load")
    torch.testing.assert_close(model(ids).logits, expected)


def test_a_classifier_of_another_size_is_refused(trained_classifier):
    path, _, _ = trained_classifier
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=4, pad_token_id=0))
    with unchanged(model), pytest.raises(ValueError, match="'score.weight' is .3, 8., the model has .4, 8."):
        load_lora(model, path, whole_modules="load")


def test_the_command_goes_without_a_classifier_only_if_it_is_told_so(trained_classifier, tmp_path):
    path, _, _ = trained_classifier
    classifier().save_pretrained(tmp_path / "base")
    command = (
        "import",
        str(path),
        "--model",
        f"hf:{tmp_path / 'base'}",
        "--out",
        str(tmp_path / "adapter.safetensors"),
    )
    code, _, error = metalora_command(*command)
    assert code != 0 and "--leave-out-modules" in error and not (tmp_path / "adapter.safetensors").exists()
    code, _, _ = metalora_command(*command, "--leave-out-modules")
    assert code == 0 and (tmp_path / "adapter.safetensors").exists()
