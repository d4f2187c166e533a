"""The command line on LoRAs of models with heads: the class is the LoRA's own, and heads and files are kept."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

import metalora
from support.command import metalora_command

IDS = torch.tensor([[5, 6, 7]])
EXTRA = {"preprocessor_config.json": '{"size": 3}', "chat_template.jinja": "{{ messages }}", "tokenizer.model": "words"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a tiny LlamaForCausalLM with a head of its own, and files that weights do not change."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2))
    model.generation_config = GenerationConfig(max_new_tokens=7, do_sample=True, top_k=3)
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    for name, text in EXTRA.items():
        (folder / name).write_text(text)
    return folder


def save_lora(base, folder, model_class=LlamaForCausalLM, **options):
    """Save a LoRA of PEFT; return its model."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, **options)
    torch.manual_seed(1)
    theirs = get_peft_model(model_class.from_pretrained(base), config).eval()
    theirs.save_pretrained(folder)
    return theirs


def run(*arguments):
    code, out, err = metalora_command(*arguments)
    assert code == 0, err
    return out


@pytest.mark.parametrize("options", ({"task_type": "CAUSAL_LM"}, {}), ids=("by the task", "by the class"))
def test_a_lora_of_a_causal_model_is_merged_and_exported_with_its_head(options, base, tmp_path):
    theirs = save_lora(base, tmp_path / "lora", **options)
    model = ("--model", f"hf:{base}")
    run("import", tmp_path, "--subfolder", "lora", *model, "--out", tmp_path / "a.safetensors")
    run("merge", tmp_path / "a.safetensors", *model, "--out", f"{tmp_path}/merged/")
    assert json.loads((tmp_path / "merged/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((tmp_path / "merged/generation_config.json").read_text())["top_k"] == 3
    assert {name: (tmp_path / "merged" / name).read_text() for name in EXTRA} == EXTRA
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-6)
    run("export", tmp_path / "a.safetensors", *model, "--to", "lora", "--out", tmp_path / "back", "--for", "vllm")
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("lora", "back"))
    assert before.keys() == after.keys() and all(name.startswith("base_model.model.model.layers.") for name in after)


def test_the_class_is_given_where_the_file_does_not_say_it(base, tmp_path):
    theirs = save_lora(base, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    tensors = {name.removeprefix("base_model.model."): value for name, value in tensors.items()}
    from safetensors.torch import save_file

    tensors |= {name.replace("lora_A.weight", "alpha"): torch.tensor(8.0) for name in tensors if "lora_A" in name}
    save_file(tensors, tmp_path / "lora.safetensors")
    words = ("import", tmp_path / "lora.safetensors", "--model", f"hf:{base}", "--out", tmp_path / "a.safetensors")
    run(*words, "--class", "LlamaForCausalLM")
    model = LlamaForCausalLM.from_pretrained(base)
    metalora.load(model, tmp_path / "a.safetensors")
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-6)
    code, _, err = metalora_command(*words, "--class", "LlamaForCausalLN", "--overwrite")
    assert code == 2 and "'LlamaForCausalLN', which is not a class of models" in err


def test_a_class_of_a_model_that_is_not_of_transformers_is_refused(tmp_path):
    words = ("import", tmp_path, "--model", "timm:resnet10t", "--class", "LlamaModel", "--out", tmp_path / "a")
    code, _, err = metalora_command(*words)
    assert code == 2 and "--class LlamaModel: timm:resnet10t is no hf: model" in err


def test_several_classes_are_refused_and_one_is_given(base, tmp_path):
    save_lora(base, tmp_path / "a", task_type="CAUSAL_LM")
    save_lora(base, tmp_path / "b", LlamaForSequenceClassification)
    words = ("combine", tmp_path / "a", tmp_path / "b", "--weights", "1", "-2", "--model", f"hf:{base}")
    code, _, err = metalora_command(*words, "--out", tmp_path / "sum")
    assert code == 2 and "AutoModelForCausalLM, LlamaForSequenceClassification: give one by --class" in err
    run(*words, "--out", tmp_path / "sum", "--class", "LlamaForCausalLM")
    assert metalora.load(LlamaForCausalLM.from_pretrained(base), tmp_path / "sum").num_params() > 0


def test_an_adapter_of_the_body_is_merged_into_the_whole_folder(base, tmp_path):
    body = LlamaModel.from_pretrained(base)
    adapter = metalora.attach(body, metalora.AdapterConfig("lora", 2, targets="q_proj"))
    for factor in adapter.parameters():
        torch.nn.init.normal_(factor, std=0.3)
    metalora.save(body, tmp_path / "a.safetensors")
    run("merge", tmp_path / "a.safetensors", "--model", f"hf:{base}", "--out", f"{tmp_path}/merged/")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged.model(IDS)[0], body(IDS)[0], rtol=1e-5, atol=1e-6)
    assert torch.equal(merged.lm_head.weight, LlamaForCausalLM.from_pretrained(base).lm_head.weight)
    words = ("export", tmp_path / "a.safetensors", "--model", f"hf:{base}", "--to", "lora", "--for", "vllm")
    code, _, err = metalora_command(*words, "--out", tmp_path / "out")
    assert code == 2 and "vllm serves a class with a head" in err and not (tmp_path / "out").exists()


NOT_SERVED = {
    "DoRA": (metalora.AdapterConfig("dora", 2, targets="q_proj"), "dora rescales outputs, and vllm has no DoRA"),
    "an output embedding": (metalora.AdapterConfig("lora", 2, targets=("more",)), "embedding of tokens alone, not"),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_what_vllm_refuses_is_refused(case, base, tmp_path):
    config, message = NOT_SERVED[case]
    model = LlamaForCausalLM.from_pretrained(base)
    model.more = torch.nn.Embedding(3, 4)
    adapter = metalora.attach(model, config)
    with pytest.raises(ValueError, match=message):
        adapter.export_lora(tmp_path / "out", runtime="vllm")


def test_the_embedding_of_tokens_is_exported_for_vllm(base, tmp_path):
    model = LlamaForCausalLM.from_pretrained(base)
    adapter = metalora.attach(model, metalora.AdapterConfig("lora", 2, targets=("model.embed_tokens", "lm_head")))
    adapter.export_lora(tmp_path / "out", runtime="vllm")
    assert {name.split(".")[-1] for name in load_file(tmp_path / "out/adapter_model.safetensors")} >= {
        "lora_embedding_A", "lora_embedding_B"
    }  # fmt: skip
