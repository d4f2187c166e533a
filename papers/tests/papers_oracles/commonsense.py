"""A commonsense folder as LLM-Adapters lays it out, and a tiny Llama whose tokens are words: both made in the test."""

import json

WORDS = ["red", "blue", "cat", "dog", "stone", "water", "sky", "tree"]


def record(k, kind="true/false"):
    """Record k: whether a sentence names a colour (true/false), or which of two options does."""
    colour, thing = WORDS[k % 2], WORDS[2 + k % 6]
    if kind == "true/false":
        text, answer = f"is {colour if k % 3 else thing} a colour ?", "true" if k % 3 else "false"
    else:
        options = (colour, thing) if k % 3 else (thing, colour)
        text = f"which is a colour ? Option1: {options[0]} Option2: {options[1]}"
        answer = "option1" if k % 3 else "option2"
    return {
        "instruction": f"{text}\n\nAnswer format: {kind}",
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def write_folder(folder, train=60, test=12):
    """commonsense_170k.json and, for boolq and winogrande, test.json and train.json."""
    kinds = {"boolq": "true/false", "winogrande": "option1/option2"}
    mixed = [record(k, kind) for k in range(train // 2) for kind in kinds.values()]
    files = {"commonsense_170k.json": mixed}
    for task, kind in kinds.items():
        files[f"{task}/test.json"] = [record(100 + k, kind) for k in range(test)]
        files[f"{task}/train.json"] = [record(k, kind) for k in range(train // 2)]
    for name, records in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(records))
    return folder


def write_model(folder, pad=False, eos=True):
    """A random LlamaForCausalLM with grouped heads and a tokenizer of whole words, saved for from_pretrained."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from metalora_papers.metatt.commonsense import prompt

    texts = [prompt(record(k, kind)["instruction"]) for k in range(12) for kind in ("true/false", "option1/option2")]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    words |= set("the correct answer is true false option1 option2".split())
    vocabulary = {word: k for k, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>"} | ({"eos_token": "</s>"} if eos else {})
    special |= {"pad_token": "<pad>"} if pad else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
