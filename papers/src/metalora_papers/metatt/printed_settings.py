"""Sizes, seeds and hyper-parameters as the MetaTT paper (arXiv:2506.09105) prints them, and stand-ins for the others.

A row of a table on GLUE has three texts: alpha, learning rate and batch. A text has a value for each task in the order
of `SIZES`, or one value for all tasks; "-" is no value.
"""

# training texts as published, and texts of the published dev set, which is `test`; in the order of Tables 5 to 11
SIZES = {
    "cola": (8551, 1043), "mnli": (392702, 9815), "mrpc": (3668, 408), "qnli": (104743, 5463),
    "qqp": (363846, 40430), "rte": (2490, 277), "sst2": (67349, 872), "stsb": (5749, 1500),
}  # fmt: skip
LARGE_TASKS = ("mnli", "qnli", "qqp", "sst2")  # two trials each
COMMONSENSE = 170420
EPOCHS = 20

SEEDS = {"roberta-base": (33305628, 2025, 42), "roberta-large": (56346, 2025, 42)}
STABILITY_SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)  # of appendix H, to which Table 14 belongs

# (model, method, rank) -> alpha, learning rate and batch
TABLES_5_AND_6 = {
    ("roberta-base", "metatt-4d", 8): ("4 4 .5 4 4 4 .5 4", "1e-3", "8 8 8 8 16 16 8 8"),
    ("roberta-base", "metatt-4d", 24): (
        "4 4 4 .5 .5 .5 4 .5", "5e-4 1e-3 5e-4 1e-3 1e-3 1e-3 5e-4 1e-3", "8 32 16 16 32 16 32 16",
    ),
    ("roberta-base", "metatt-4d", 64): (
        ".5", "1e-3 5e-4 5e-4 1e-3 1e-3 5e-4 1e-3 5e-4", "32 8 32 16 32 8 8 8",
    ),
    ("roberta-large", "metatt-4d", 16): (
        ".5 .5 .5 .5 .5 .5 4 .5", "1e-3 1e-3 5e-4 1e-3 1e-3 5e-4 1e-3 1e-3", "8 32 32 32 16 8 16 32",
    ),
    ("roberta-large", "metatt-4d", 32): (
        "4 .5 .5 .5 .5 .5 4 .5", "5e-4 1e-3 1e-3 1e-3 5e-4 5e-4 5e-4 1e-3", "32 16 32 32 8 32 32 16",
    ),
    ("roberta-base", "metatt-5d", 16): (
        ".5", "5e-4 1e-3 1e-3 1e-3 1e-3 1e-3 5e-4 1e-3", "32 16 8 8 8 8 16 8",
    ),
    ("roberta-base", "metatt-5d", 64): (
        ".5", "5e-4 5e-4 1e-3 1e-3 5e-4 5e-4 1e-3 1e-3", "32 8 16 16 16 32 16 8",
    ),
    ("roberta-large", "metatt-5d", 32): (
        ".5", "1e-3 1e-3 5e-4 1e-3 1e-3 5e-4 5e-4 1e-3", "32 8 32 32 16 8 8 16",
    ),
    ("roberta-large", "metatt-5d", 64): (
        ".5", "5e-4 1e-3 5e-4 5e-4 5e-4 5e-4 5e-4 5e-4", "16 32 16 16 16 16 16 8",
    ),
}  # fmt: skip
_LORETTA_RATES = "1e-3 4e-4 8e-4 2e-3 3e-3 2e-3 3e-4 -"
_LORTA_RATES = "1e-2 1e-2 1e-2 1e-2 1.5e-2 1e-2 4e-3 4e-3"
TABLES_8_9_AND_11 = {
    ("roberta-base", "vera", 1024): ("-", "5e-3 8e-4 1e-2 1.5e-2 2.5e-2 4e-3 1e-2 3e-3", "32"),
    ("roberta-large", "vera", 256): ("-", "9e-3 1e-2 4e-3 6e-3 1e-2 5e-3 1e-2 3e-3", "32"),
    ("roberta-base", "loretta-adp", 5): ("1", _LORETTA_RATES, "32"),
    ("roberta-base", "loretta-rep", 5): ("1", "5e-4 1e-4 7e-4 1e-3 - 4e-4 3e-4 -", "32"),
    ("roberta-base", "lorta", 8): ("1", _LORTA_RATES, "32"),
    ("roberta-base", "lorta", 64): ("1", _LORTA_RATES, "32"),
    ("roberta-large", "lorta", 8): ("1", "1e-2 1e-2 1e-2 1e-2 8e-3 2e-2 1e-2 2e-2", "32"),
}  # fmt: skip
# Rows of Table 2 whose settings the paper does not print, with stand-ins that the notes of the recipes explain.
UNPRINTED = {
    ("roberta-large", "loretta-adp", 5): ("1", _LORETTA_RATES, "32"),
    **{("roberta-base", "lotr", rank): ("2", "5e-4", "32") for rank in (32, 40, 80, 88)},
    ("roberta-large", "lotr", 64): ("2", "5e-4", "32"),
    **{(model, "lora", 8): ("16", "2e-4", "16") for model in SEEDS},
    **{(model, "full", 0): ("-", "2e-5", "16") for model in SEEDS},
}

# (table, model, task) -> rank, alpha, learning rate, batch
TABLES_14_AND_17 = {
    ("table14", "roberta-base", "cola"): (4, 8, 5e-4, 16), ("table14", "roberta-base", "mrpc"): (32, 64, 2e-4, 8),
    ("table14", "roberta-base", "rte"): (8, 16, 2e-4, 16), ("table14", "roberta-large", "cola"): (64, 128, 2e-4, 16),
    ("table14", "roberta-large", "mrpc"): (32, 64, 2e-4, 8), ("table14", "roberta-large", "rte"): (8, 16, 2e-4, 16),
    ("table17", "roberta-base", "cola"): (4, 8, 5e-4, 16), ("table17", "roberta-base", "mrpc"): (4, 8, 2e-4, 8),
    ("table17", "roberta-base", "rte"): (4, 8, 2e-4, 16), ("table17", "roberta-large", "cola"): (4, 8, 2e-4, 16),
    ("table17", "roberta-large", "mrpc"): (4, 8, 2e-4, 8), ("table17", "roberta-large", "rte"): (4, 8, 2e-4, 16),
}  # fmt: skip
# AdaLoRA of Table 17, from rank 8 to 4 with alpha 16: (model, task) -> learning rate, batch
TABLE_17_ADALORA = {
    ("roberta-base", "cola"): (2e-4, 8), ("roberta-base", "mrpc"): (1e-3, 8), ("roberta-base", "rte"): (2e-4, 8),
    ("roberta-large", "cola"): (2e-4, 8), ("roberta-large", "mrpc"): (4e-4, 8), ("roberta-large", "rte"): (2e-4, 16),
}  # fmt: skip

# Tables 3 and 13: the tasks that are trained together; and method -> rank, alpha, batch
JOINT = {"table3": ("cola", "mrpc", "rte"), "table13": ("cola", "mrpc", "rte", "qnli")}
JOINT_METHODS = {
    "lora": (8, 16.0, 16), "mtl-lora": (4, 8.0, 32), "moe-lora-task": (8, 16.0, 32),
    "metatt-4d": (8, 2.0, 16), "metatt-4+1d": (8, 2.0, 16),
}  # fmt: skip
# (model, method) -> learning rate; the others have 5e-4
TABLE_12 = {
    ("roberta-base", "moe-lora-task"): 7e-4, ("roberta-base", "mtl-lora"): 5e-4,
    ("roberta-large", "moe-lora-task"): 9e-4, ("roberta-large", "mtl-lora"): 5e-4,
}  # fmt: skip

TABLE_1 = (
    ("llama-2-7b", "lora", 8), ("llama-2-7b", "lora", 16), ("llama-2-7b", "vera", 1024), ("llama-2-7b", "lotr", 16),
    ("llama-2-7b", "metatt-4d", 16), ("llama-2-7b", "metatt-4d", 256), ("llama-2-13b", "lora", 8),
    ("llama-2-13b", "lora", 32), ("llama-2-13b", "vera", 256), ("llama-2-13b", "lotr", 64),
    ("llama-2-13b", "metatt-4d", 16), ("llama-2-13b", "metatt-4d", 64),
)  # fmt: skip


def by_task(text: str) -> list[float | None]:
    """Return the values of a text for the tasks of `SIZES`, None for "-".

    Example:
        >>> by_task("32")
        [32.0, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0, 32.0]
        >>> by_task("1 1 1 1 - 1 1 -")[4] is None
        True
    """
    words = text.split()
    if len(words) == 1:
        words *= len(SIZES)
    assert len(words) == len(SIZES), text
    return [None if word == "-" else float(word) for word in words]
