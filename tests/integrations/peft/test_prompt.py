"""Random answers stay at chance through PEFT: in a plain loop, in the Trainer of transformers, in TRL."""

import math

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

import metalora.peft as mp

CHANCE = math.log(4)  # nats, for answers that are drawn from four tokens
STEPS, BATCH, PROMPT = 160, 8, 4
RATE = 1e-2
WORDS = ["<pad>", "<eos>", "<unk>", "prompt", "north", "east", "south", "west"]


def llama():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return LlamaForCausalLM(
        LlamaConfig(**sizes, initializer_range=0.2, vocab_size=len(WORDS), pad_token_id=0, eos_token_id=1)
    )


def answers():
    return torch.randint(4, 8, (STEPS * BATCH,), generator=torch.Generator().manual_seed(1)).tolist()


def rows():
    prompt = [3] * PROMPT
    return [{"input_ids": [*prompt, answer], "labels": [-100] * PROMPT + [answer]} for answer in answers()]


def config(**condition):
    modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return mp.MetaLoRAConfig(r=4, target_modules=modules, task_type="CAUSAL_LM", condition=condition)


def calibrated(model):
    ids = torch.randint(3, 8, (64, PROMPT + 1), generator=torch.Generator().manual_seed(2))
    mp.adapter_of(model).calibrate({"input_ids": ids})
    return model


def arguments(folder):
    return dict(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=RATE, use_cpu=True,
        lr_scheduler_type="constant", report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
    )  # fmt: skip


def losses_of(trainer):
    trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def plain_loop(folder, **condition):
    model = calibrated(get_peft_model(llama(), config(**condition)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    examples, losses = rows(), []
    for step in range(STEPS):
        part = examples[step * BATCH : (step + 1) * BATCH]
        loss = model(**{name: torch.tensor([row[name] for row in part]) for name in part[0]}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def transformers_trainer(folder, **condition):
    model = calibrated(get_peft_model(llama(), config(**condition)))
    return losses_of(Trainer(model=model, args=TrainingArguments(**arguments(folder)), train_dataset=rows()))


def trl_trainer(folder, **condition):
    trl = pytest.importorskip("trl")
    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    pairs = [{"prompt": "prompt " * PROMPT, "completion": WORDS[answer]} for answer in answers()]
    trainer = trl.SFTTrainer(
        model=llama(), args=trl.SFTConfig(**arguments(folder), bf16=False), processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs), peft_config=config(**condition),
    )  # fmt: skip
    calibrated(trainer.model)
    # TRL adds an end of text, which is easy to learn: a loss is the mean over a random token and a known one.
    return [2 * loss for loss in losses_of(trainer)]


@pytest.mark.slow
@pytest.mark.parametrize("run", [plain_loop, transformers_trainer, trl_trainer])
def test_random_answers_stay_at_chance(run, tmp_path):
    losses = run(tmp_path)
    assert len(losses) == STEPS and losses[0] > CHANCE
    assert abs(sum(losses[-30:]) / 30 - CHANCE) < 0.05


def test_a_condition_from_all_tokens_gives_the_answer_away(tmp_path):
    losses = plain_loop(tmp_path, tokens="all", source="stem", stem="model.embed_tokens")
    assert sum(losses[-30:]) / 30 < CHANCE - 0.3


def test_texts_without_a_prompt_are_refused():
    model = get_peft_model(llama(), config())
    ids = torch.tensor([[3, 3, 3, 4]])
    with pytest.raises(ValueError, match="example 0 has no prompt"):
        model(input_ids=ids, labels=ids)
    with pytest.raises(ValueError, match="nothing says where the prompt ends"):
        model(input_ids=ids)
    mask = torch.tensor([[1, 1, 1, 0]])
    by_mask = model(input_ids=ids, labels=ids, prompt_mask=mask).logits
    by_labels = model(input_ids=ids, labels=ids.where(mask == 0, -100)).logits
    assert torch.equal(by_mask, by_labels)
