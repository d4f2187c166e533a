"""TensLoRA's two experiments at its own scale, by name: DTD with ViT-B/16 and MRPC with RoBERTa-base.

The poster prints no hyper-parameters; those here are of the code of its authors, and the note of a recipe says what is
open. None was run here: they need weights and a GPU.
"""

from __future__ import annotations

from functools import cache

from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora.zoo import architectures
from metalora_papers.config import TextRunConfig
from metalora_papers.metatt.printed_settings import SIZES
from metalora_papers.metatt.recipes import GLUE_NOTE, VAL_SHARES, Recipe
from metalora_papers.tenslora.config import ImageRunConfig
from metalora_papers.tenslora.table import CONSTRUCTION, ISOPARAMETERS, ISORANK

PAPER = "TensLoRA (poster, ICASSP 2026)"
LORA_RANK = 8
ISO_RANKS = {
    "att": 12,
    "qkv": 22,
    "depth": 63,
    "att-qkv": 22,
    "att-depth": 29,
    "qkv-depth": 91,
    "att-qkv-depth": 31,
}
"""Construction -> the largest rank with at most LoRA's 442,368 numbers; a smaller mode keeps its size."""
SEEDS = (0, 1, 2, 3, 4)
EPOCHS, RATE, DECAY, WARMUP = 10, 5e-4, 0.01, 0.1
VIT, ROBERTA = "vit-base", "roberta-base"
TARGETS = {VIT: "q_proj,k_proj,v_proj", ROBERTA: "query,key,value"}
DTD_EXAMPLES, DTD_BATCH, MRPC_BATCH = 1000, 64, 16

NOTE = (
    "Scale 1, as in the authors' code; their ranks at equal parameters are not published: here the largest equal ones.",
    "Seeds are not published.",
)
DTD_NOTE = (
    "Give data_root: the folder that torchvision's DTD has as root (its first official split). AdamW, rate, decay,",
    "epochs, batch and 1000 training pictures are of the authors' code; the warm-up is not known: here a tenth.",
)
MRPC_NOTE = (
    "AdamW, the cosine schedule and its warm-up are of the authors' code. Rate, decay, epochs and batch are not known:",
    "here those of their ViT, and 16. Head: RoBERTa's own, as theirs, without dropout; trained.",
    *GLUE_NOTE,
)


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, TASK-MODEL-METHOD[-PROTOCOL]."""
    found = {}
    for model, task in ((VIT, "dtd"), (ROBERTA, "mrpc")):
        for suffix, adapter in _adapters(TARGETS[model]).items():
            name = f"{task}-{model}-{suffix}"
            run, note = (_dtd(adapter), DTD_NOTE) if task == "dtd" else (_mrpc(adapter), MRPC_NOTE)
            found[name] = Recipe(name, model, run, SEEDS, (*note, *NOTE), PAPER)
    return found


def _adapters(targets: str) -> dict[str, AdapterConfig]:
    """Return LoRA and every construction under both protocols, by the end of the name of a recipe."""
    constant = ConditionConfig(scope="constant")
    lora = AdapterConfig("lora", LORA_RANK, alpha=float(LORA_RANK), targets=targets, condition=constant)
    found = {"lora": lora}
    for construction, rank in ISO_RANKS.items():
        method = f"{CONSTRUCTION}{construction}"
        for protocol, bond, clip in ((ISORANK, LORA_RANK, False), (ISOPARAMETERS, rank, True)):
            found[f"{method}-{protocol}"] = AdapterConfig(
                method, bond, alpha=1.0, targets=targets, condition=constant, clip_rank=clip
            )
    return found


def _train(examples: int, batch: int) -> TrainConfig:
    steps = EPOCHS * (examples // batch)
    return TrainConfig(
        steps=steps, lr=RATE, schedule="cosine", warmup=WARMUP, weight_decay=DECAY, store="float32"
    )  # fmt: skip


def _dtd(adapter: AdapterConfig) -> ImageRunConfig:
    return ImageRunConfig(
        data="dtd", model=VIT, augment="crop-flip", method=adapter.method, adapter=adapter, batch=DTD_BATCH,
        examples=DTD_EXAMPLES, train=_train(DTD_EXAMPLES, DTD_BATCH),
    )  # fmt: skip


def _mrpc(adapter: AdapterConfig) -> TextRunConfig:
    published, test = SIZES["mrpc"]
    examples = published - round(VAL_SHARES["glue"] * published)
    return TextRunConfig(
        suite="glue", tasks=("mrpc",), model=f"hf:{architectures()[ROBERTA]['hub']}", method=adapter.method,
        adapter=adapter, head="roberta", batch=MRPC_BATCH, examples=examples, test_examples=test, max_length=512,
        train=_train(examples, MRPC_BATCH),
    )  # fmt: skip
