"""TRL's SFTTrainer with a configuration of ours."""

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import metalora.peft as mp

trl = pytest.importorskip("trl")


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=32)
    return LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1))


def test_sft_trainer_trains_and_saves(tmp_path):
    words = {word: k for k, word in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefg"])}
    letters = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=0.05, use_cpu=True,
        bf16=False, report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=llama(), args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": ["a b c d e f", "b c d e f g"] * 8}),
        peft_config=mp.MetaTTConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0]) - 0.1
    trainer.save_model(tmp_path / "saved")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        assert torch.equal(PeftModel.from_pretrained(llama(), tmp_path / "saved").eval()(ids).logits, expected)
