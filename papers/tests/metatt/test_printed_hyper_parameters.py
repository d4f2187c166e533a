"""Tables 5, 6, 8, 9, 11, 12, 14 and 17 of the MetaTT paper as printed there, cell by cell against the recipes."""

import pytest

from metalora_papers.metatt.recipes import recipes
from metalora_papers.recipes import recipe

TASKS = "cola mnli mrpc qnli qqp rte sst2 stsb".split()
# Start of the names of the recipes, end of the names for each column, lines: model, rank, setting, values; "-" is none.
PRINTED = {
    "Table 5": ("table2-roberta-{}-metatt-4d-r{}", TASKS, """
base 8 alpha 4 4 0.5 4 4 4 0.5 4
base 8 lr 0.001 0.001 0.001 0.001 0.001 0.001 0.001 0.001
base 8 batch 8 8 8 8 16 16 8 8
base 24 alpha 4 4 4 0.5 0.5 0.5 4 0.5
base 24 lr 0.0005 0.001 0.0005 0.001 0.001 0.001 0.0005 0.001
base 24 batch 8 32 16 16 32 16 32 16
base 64 alpha 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5
base 64 lr 0.001 0.0005 0.0005 0.001 0.001 0.0005 0.001 0.0005
base 64 batch 32 8 32 16 32 8 8 8
large 16 alpha 0.5 0.5 0.5 0.5 0.5 0.5 4 0.5
large 16 lr 0.001 0.001 0.0005 0.001 0.001 0.0005 0.001 0.001
large 16 batch 8 32 32 32 16 8 16 32
large 32 alpha 4 0.5 0.5 0.5 0.5 0.5 4 0.5
large 32 lr 0.0005 0.001 0.001 0.001 0.0005 0.0005 0.0005 0.001
large 32 batch 32 16 32 32 8 32 32 16
"""),  # its first rank is printed as 4, a slip: its parameters are those of rank 8
    "Table 6": ("table2-roberta-{}-metatt-5d-r{}", TASKS, """
base 16 alpha 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5
base 16 lr 0.0005 0.001 0.001 0.001 0.001 0.001 0.0005 0.001
base 16 batch 32 16 8 8 8 8 16 8
base 64 alpha 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5
base 64 lr 0.0005 0.0005 0.001 0.001 0.0005 0.0005 0.001 0.001
base 64 batch 32 8 16 16 16 32 16 8
large 32 alpha 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5
large 32 lr 0.001 0.001 0.0005 0.001 0.001 0.0005 0.0005 0.001
large 32 batch 32 8 32 32 16 8 8 16
large 64 alpha 0.5 0.5 0.5 0.5 0.5 0.5 0.5 0.5
large 64 lr 0.0005 0.001 0.0005 0.0005 0.0005 0.0005 0.0005 0.0005
large 64 batch 16 32 16 16 16 16 16 8
"""),
    "Table 8": ("table2-roberta-{}-vera-r{}", TASKS, """
base 1024 lr 0.005 0.0008 0.01 0.015 0.025 0.004 0.01 0.003
large 256 lr 0.009 0.01 0.004 0.006 0.01 0.005 0.01 0.003
"""),
    "Table 9, adapters": ("table2-roberta-{}-loretta-adp-r{}", TASKS, """
base 5 lr 1e-3 4e-4 8e-4 2e-3 3e-3 2e-3 3e-4 -
"""),
    "Table 9, weights": ("table9-roberta-{}-loretta-rep-r{}", TASKS, """
base 5 lr 5e-4 1e-4 7e-4 1e-3 - 4e-4 3e-4 -
"""),
    "Table 11": ("table2-roberta-{}-lorta-r{}", TASKS, """
base 8 lr 1e-2 1e-2 1e-2 1e-2 1.5e-2 1e-2 4e-3 4e-3
base 64 lr 1e-2 1e-2 1e-2 1e-2 1.5e-2 1e-2 4e-3 4e-3
large 8 lr 1e-2 1e-2 1e-2 1e-2 8e-3 2e-2 1e-2 2e-2
"""),  # printed once for both ranks
    "Table 12": ("table3-roberta-{}", ("moe-lora-task", "mtl-lora"), """
base - lr 7e-4 5e-4
large - lr 9e-4 5e-4
"""),
    "Table 14": ("table14-roberta-{}-lora", ("cola", "mrpc", "rte"), """
base - rank 4 32 8
base - alpha 8.0 64.0 16.0
base - lr 5e-4 2e-4 2e-4
base - batch 16 8 16
large - rank 64 32 8
large - alpha 128.0 64.0 16.0
large - lr 2e-4 2e-4 2e-4
large - batch 16 8 16
"""),
    "Table 17, LoRA": ("table17-roberta-{}-lora", ("cola", "mrpc", "rte"), """
base - rank 4 4 4
base - alpha 8.0 8.0 8.0
base - lr 5e-4 2e-4 2e-4
base - batch 16 8 16
large - rank 4 4 4
large - alpha 8.0 8.0 8.0
large - lr 2e-4 2e-4 2e-4
large - batch 16 8 16
"""),
    "Table 17, AdaLoRA": ("table17-roberta-{}-adalora", ("cola", "mrpc", "rte"), """
base - rank 8 8 8
base - final 4 4 4
base - alpha 16.0 16.0 16.0
base - lr 2e-4 1e-3 2e-4
base - batch 8 8 8
large - rank 8 8 8
large - final 4 4 4
large - alpha 16.0 16.0 16.0
large - lr 2e-4 4e-4 2e-4
large - batch 8 8 16
"""),
}  # fmt: skip
READ = {
    "rank": lambda run: run.adapter.rank,
    "final": lambda run: run.train.rank_budget.final,
    "alpha": lambda run: run.adapter.alpha,
    "lr": lambda run: run.train.lr,
    "batch": lambda run: run.batch,
}


@pytest.mark.parametrize("start, columns, text", PRINTED.values(), ids=PRINTED)
def test_every_cell_is_the_printed_one(start, columns, text):
    for line in text.strip().splitlines():
        model, rank, setting, *values = line.split()
        for column, value in zip(columns, values, strict=True):
            name = f"{start.format(model, rank)}-{column}"
            if value == "-":  # no result
                assert name not in recipes()
            else:
                assert READ[setting](recipe(name).run) == float(value), (name, setting)


# The text of appendix D.5 and I.1: name -> (targets, batch, alpha, weight decay, epochs, trials)
QV, QKVO = "query,value", "query,key,value,attention.output.dense"
TEXT = {
    "table2-roberta-base-vera-r1024-mnli": (QV, 32, None, 0.0, 20, 2),
    "table2-roberta-large-vera-r256-stsb": (QV, 32, None, 0.0, 20, 3),
    "table2-roberta-base-loretta-adp-r5-mnli": ("output.dense", 32, 1.0, 0.01, 10, 2),
    "table2-roberta-base-loretta-adp-r5-qqp": ("output.dense", 32, 1.0, 0.01, 10, 2),
    "table2-roberta-base-loretta-adp-r5-qnli": ("output.dense", 32, 1.0, 0.01, 20, 2),
    "table9-roberta-base-loretta-rep-r5-rte": (QV, 32, 1.0, 0.01, 20, 3),
    "table2-roberta-large-lorta-r8-sst2": (QKVO, 32, 1.0, 0.0, 10, 3),
    "table2-roberta-large-lorta-r8-stsb": (QKVO, 32, 1.0, 0.0, 20, 3),
    "table2-roberta-base-metatt-4d-r24-sst2": (QV, 32, 4.0, 0.0, 20, 2),
    "table2-roberta-base-metatt-4d-r24-rte": (QV, 16, 0.5, 0.0, 20, 3),
    "table3-roberta-base-moe-lora-task": (QV, 32, 16.0, 0.0, 20, 3),
    "table3-roberta-large-mtl-lora": (QV, 32, 8.0, 0.0, 20, 3),
    "table4-roberta-base-dmrg-rte": (QV, 8, 0.5, 0.0, 20, 10),
    "table4-roberta-large-adamw-r4-rte": (QV, 8, 0.5, 0.0, 20, 4),
    "table14-roberta-base-lora-rte": (QV, 16, 16.0, 0.0, 20, 8),
    "table17-roberta-base-lora-rte": (QV, 16, 8.0, 0.0, 20, 3),
}


@pytest.mark.parametrize("name, expected", TEXT.items(), ids=TEXT)
def test_what_the_text_says(name, expected):
    entry = recipe(name)
    run = entry.run
    epochs = run.train.steps / (run.examples // run.batch)
    found = (run.adapter.targets, run.batch, run.adapter.alpha, run.train.weight_decay, epochs, len(entry.seeds))
    assert found == expected and len(set(entry.seeds)) == expected[-1]


# name -> (rank, alpha, final, start, hold, every, beta1, beta2), appendix I
BUDGETS = {
    "table17-roberta-large-adalora-rte": (8, 16.0, 4, 200, 1000, 10, 0.85, 0.85),
    "figure13-llama-2-7b-adalora": (16, 32.0, 8, 84, 39, 84, 0.85, 0.85),
}


@pytest.mark.parametrize("name, expected", BUDGETS.items(), ids=BUDGETS)
def test_the_budgets_of_adalora(name, expected):
    run = recipe(name).run
    rule = run.train.rank_budget
    found = (rule.final, rule.start, rule.hold, rule.every, rule.beta1, rule.beta2)
    assert (run.adapter.rank, run.adapter.alpha, *found) == expected


def test_full_fine_tuning_has_no_adapter():
    run = recipe("table2-roberta-large-full-cola").run
    assert run.full and run.adapter is None and run.classifier == "trained"
