"""A causal language model with TRL, then out of this library: a plain LoRA folder that PEFT and vLLM load.

The model is small and random, so that nothing is downloaded: put the name of a real one in its place.
"""

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import metalora.peft
from metalora.peft import MetaTTConfig

VERSES = ["the cat sat on the mat", "the dog lay on the rug", "a bird flew over the house", "the cat lay on the rug"]


def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = ["<pad>", "<eos>", "<unk>", *dict.fromkeys(" ".join(VERSES).split())]
    model = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    config = LlamaConfig(**sizes, vocab_size=len(words), pad_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(config), tokenizer


def main(steps: int = 30, folder: str = "runs/verses") -> float:
    model, tokenizer = tiny()
    arguments = SFTConfig(
        folder, max_steps=steps, per_device_train_batch_size=4, learning_rate=3e-2, use_cpu=True, bf16=False,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=5,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_dict({"text": VERSES * 8}),
        peft_config=MetaTTConfig(r=8, alpha=4.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    adapter = metalora.peft.adapter_of(trainer.model)
    adapter.export_lora(f"{folder}/lora", runtime="vllm")  # exact, no SVD; refuses what vLLM would not load
    ids = tokenizer(VERSES[0], return_tensors="pt").input_ids
    with torch.no_grad():
        want = trainer.model.eval()(ids).logits
        plain = PeftModel.from_pretrained(tiny()[0], f"{folder}/lora").eval()(ids).logits  # PEFT's own LoRA
    print(f"{adapter.num_params():,} numbers; the exported LoRA's logits differ by {(plain - want).abs().max():.1e}")
    return float((plain - want).abs().max())


if __name__ == "__main__":
    main()
