"""MetaTT's experiments at the paper's scale (arXiv:2506.09105): its hyper-parameter tables as runs, by name.

Every run differs from a small one in configuration only; `metalora-papers recipe NAME > run.yaml` writes one. The note
of a recipe says what the paper does not print and what is done in another way here. None was run here: they need
weights and a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from metalora.config import AdapterConfig, ConditionConfig, RankBudgetConfig, RankScheduleConfig, TrainConfig
from metalora.methods.registry import get_method
from metalora.zoo import architectures
from metalora_papers.config import CausalRunConfig, TextRunConfig
from metalora_papers.metatt.printed_settings import (
    COMMONSENSE,
    EPOCHS,
    JOINT,
    JOINT_METHODS,
    LARGE_TASKS,
    SEEDS,
    SIZES,
    STABILITY_SEEDS,
    TABLE_1,
    TABLE_12,
    TABLE_17_ADALORA,
    TABLES_5_AND_6,
    TABLES_8_9_AND_11,
    TABLES_14_AND_17,
    UNPRINTED,
    by_task,
)
from metalora_papers.runs import FULL
from metalora_papers.tenslora.config import ImageRunConfig

VAL_SHARES = {"glue": 0.1, "commonsense": 0.01}  # as data.glue and data.commonsense part them
SHOWN = ("suite", "method", "rank", "alpha", "batch", "examples", "seed")  # in a file even where they are the default
QUERY_VALUE = "query,value"
FROZEN_HEAD = ("Head: RoBERTa's own (dense, tanh, linear on the first token), no dropout; drawn at random and frozen.",)
TRAINED_HEAD = ("Head: RoBERTa's own (dense, tanh, linear on the first token), no dropout; trained.",)
GLUE_NOTE = (
    "A tenth of the training texts is kept as `val` and the published dev set is `test`; the paper reports the best of",
    "its epochs on that set, this run its last step.",
)


@dataclass(frozen=True)
class Protocol:
    """What a method of Table 2 has in common at all models, ranks and tasks.

    Attributes:
        table: The table that a recipe is named after.
        targets: The adapted matrices.
        decay: Weight decay.
        ten_epochs: Tasks of ten epochs instead of twenty.
        trials: Trials of a large task.
        note: What the paper does not print.
    """

    table: str = "table2"
    targets: str = QUERY_VALUE
    decay: float = 0.0
    ten_epochs: tuple[str, ...] = ()
    trials: int = 2
    note: tuple[str, ...] = ()


PROTOCOLS = {
    "metatt-4d": Protocol(),
    "metatt-5d": Protocol(),
    "vera": Protocol(),
    "loretta-adp": Protocol(
        targets="output.dense",  # attention.output.dense ends so, too
        decay=0.01,
        ten_epochs=("mnli", "qqp"),
    ),
    "loretta-rep": Protocol(
        table="table9",
        decay=0.01,
        ten_epochs=("mnli", "qqp"),
        note=("LoRA's rank inside the trains is not printed: here 8. Table 2 has no row of this method.",),
    ),
    "lorta": Protocol(
        targets="query,key,value,attention.output.dense",
        ten_epochs=LARGE_TASKS,
        trials=3,
        note=(
            "Alpha is of {0.5, 1, 2, 8} and the batch of {32, 64} (Table 10), which of them is not printed. Four",
            "matrices: the parameters of Table 2 say so (9.1k of the large model), appendix D.2 says two.",
        ),
    ),
    "lotr": Protocol(
        note=(
            "The paper quotes LoTR's own paper and prints no settings: alpha and rate are those that it prints for",
            "LoTR on Llama, the batch is that of its other baselines.",
        ),
    ),
    "lora": Protocol(
        note=("The paper quotes LoTR's paper and prints no settings: here those of Table 14 at rank 8 (RTE).",),
    ),
    "full": Protocol(
        note=("The paper prints no settings: rate and batch are of the grid of RoBERTa's paper.",),
    ),
}
ROW_NOTES = {
    ("roberta-base", "metatt-4d", 8): ("Table 5 prints this row as rank 4; its parameters and Table 2 say 8.",),
    ("roberta-large", "loretta-adp", 5): ("Table 9 prints no rates of the large model: here those of the base model.",),
}
JOINT_NOTE = ("A batch is of every task; an epoch is that of the largest.",)
JOINT_NOTES = {
    "lora": ("LoRA's alpha is not printed: here twice the rank, as elsewhere in the paper.",),
    "mtl-lora": (
        "Alpha is not printed: here twice the rank. Nor is the number of up-projections: three give the parameters of",
        "Table 3. The rate is that of Table 12, which is about Table 3.",
    ),
    "moe-lora-task": (
        "Alpha is not printed: here twice the rank, which is 8 of all four experts together: Table 3 and its",
        "parameters say so, the text says 4. The rate is that of Table 12, which is about Table 3.",
    ),
}
CAUSAL_STARTS = {"vera": (None, ""), "lotr": (2.0, "ze-no-id"), "metatt-4d": (1.0, "ze-no-no-id")}  # alpha and start
LORETTA_DIGITS = {  # in the counts of Table 2
    "roberta-base": {"in": "8 8 12", "out": "12 8 8", "hidden": "8 8"},
    "roberta-large": {"in": "4 16 4 4", "out": "4 4 16 4", "hidden": "4 4 4"},
}


@dataclass(frozen=True)
class Recipe:
    """A run of a paper by name.

    Attributes:
        name: Its name.
        architecture: The architecture it is for, a key of `metalora.zoo.architectures()`.
        run: The configuration, with the first seed.
        seeds: As many seeds as the paper has trials; the first ones are printed there.
        note: What the paper does not print and what is done in another way, line by line.
        paper: Name of the paper.
    """

    name: str
    architecture: str
    run: TextRunConfig | CausalRunConfig | ImageRunConfig
    seeds: tuple[int, ...]
    note: tuple[str, ...]
    paper: str = "MetaTT (arXiv:2506.09105)"

    def yaml(self, seed: int | None = None) -> str:
        """Return the file of the run: its note, then what differs from the defaults.

        Args:
            seed: A seed instead of the first of the paper's.
        """
        import yaml

        run = self.run if seed is None else seeded(self.run, seed)
        seeds = ", ".join(map(str, self.seeds))
        comments = [f"{self.paper}, {self.name}; seeds {seeds}", *self.note]
        head = "".join(f"# {line}\n" for line in comments)
        return head + yaml.safe_dump(_changed(run), sort_keys=False, width=120)


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, TABLE-MODEL-METHOD..., in the order of the tables."""
    in_order = [*_table_1(), *_table_2(), *_joint(), *_table_4(), *_lora(), *_adalora(), *_figure_13()]
    return {item.name: item for item in in_order}


def seeded(run: Any, seed: int) -> Any:
    """Return the same run with another seed of the batches and of the adapter."""
    adapter = None if run.adapter is None else dataclasses.replace(run.adapter, seed=seed)
    return dataclasses.replace(run, seed=seed, adapter=adapter)


def _adapter(method: str, rank: int, alpha: float | None, targets: str = QUERY_VALUE) -> AdapterConfig:
    return AdapterConfig(method, rank, alpha=alpha, targets=targets, condition=ConditionConfig(scope="constant"))


def _schedule(steps: int, lr: float) -> TrainConfig:
    """AdamW without weight decay, 6 % warm-up, then linearly to zero; nothing is rounded before it is scored."""
    return TrainConfig(steps=steps, lr=lr, schedule="linear", warmup=0.06, store="float32")


def _without_val(suite: str, n: int) -> int:
    """Return how many of n texts are left for training when the validation texts are apart."""
    return n - round(VAL_SHARES[suite] * n)


@dataclass(frozen=True)
class _Cell:
    """The settings of one task in a row of a table."""

    task: str
    lr: float
    batch: int
    epochs: int = EPOCHS
    decay: float = 0.0


def _single(name: str, model: str, adapter: AdapterConfig | None, cell: _Cell, trials: int, *note: str) -> Recipe:
    """Return the run of one GLUE task on all its training texts; without an adapter the whole encoder is trained."""
    published, test = SIZES[cell.task]
    examples = _without_val("glue", published)
    train = _schedule(cell.epochs * (examples // cell.batch), cell.lr)
    run = TextRunConfig(
        suite="glue", tasks=(cell.task,), model=f"hf:{architectures()[model]['hub']}",
        method=FULL if adapter is None else adapter.method, adapter=adapter, full=adapter is None,
        classifier="trained" if adapter is None else "frozen", head="roberta", batch=cell.batch, examples=examples,
        test_examples=test, max_length=256, train=dataclasses.replace(train, weight_decay=cell.decay),
    )  # fmt: skip
    seeds, head = _seeds(model, trials), TRAINED_HEAD if adapter is None else FROZEN_HEAD
    if trials > len(SEEDS[model]):
        note = (*note, "The paper prints three seeds; those after them are not the paper's.")
    return Recipe(name, model, seeded(run, seeds[0]), seeds, (*note, *head, *GLUE_NOTE))


def _seeds(model: str, trials: int) -> tuple[int, ...]:
    """Return that many seeds: the printed ones, then 1, 2, ..."""
    return (*SEEDS[model], *range(1, trials))[:trials]


def _table_2() -> Iterator[Recipe]:
    """All methods on single GLUE tasks, and LoRETTA_rep of Table 9."""
    for (model, method, rank), row in (TABLES_5_AND_6 | TABLES_8_9_AND_11 | UNPRINTED).items():
        for cells in zip(SIZES, *map(by_task, row), strict=True):
            task, alpha, lr, batch = cells
            if lr is None:
                continue  # the paper has no result on this task
            assert batch is not None
            protocol = PROTOCOLS[method]
            cell = _Cell(task, lr, int(batch), 10 if task in protocol.ten_epochs else EPOCHS, protocol.decay)
            name = "-".join([protocol.table, model, method, *([f"r{rank}"] if rank else []), task])
            note = ROW_NOTES.get((model, method, rank), ()) + protocol.note
            adapter = _adapter_of_table_2(model, method, rank, alpha)
            yield _single(name, model, adapter, cell, protocol.trials if task in LARGE_TASKS else 3, *note)


def _adapter_of_table_2(model: str, method: str, rank: int, alpha: float | None) -> AdapterConfig | None:
    """Return the adapter of a row; None for full fine-tuning."""
    if method == "full":
        return None
    adapter = _adapter(method, rank, alpha, PROTOCOLS[method].targets)
    if method == "loretta-adp":
        return dataclasses.replace(adapter, digits=LORETTA_DIGITS[model])
    if method == "loretta-rep":
        return dataclasses.replace(adapter, rank=(rank, rank, rank, 8, rank, rank, rank))  # the fourth bond is LoRA's
    return adapter


def _lora() -> Iterator[Recipe]:
    """LoRA on single GLUE tasks: Table 14 over eight seeds, Table 17 over three."""
    for (table, model, task), (rank, alpha, lr, batch) in TABLES_14_AND_17.items():
        adapter = _adapter("lora", rank, float(alpha))
        entry = _single(f"{table}-{model}-lora-{task}", model, adapter, _Cell(task, lr, batch), 3)
        if table == "table14":
            run = seeded(entry.run, STABILITY_SEEDS[0])
            entry = dataclasses.replace(entry, seeds=STABILITY_SEEDS, run=run)
        yield entry


def _adalora() -> Iterator[Recipe]:
    """AdaLoRA of Tables 16 and 17: from rank 8 to 4 within 2000 steps."""
    note = (
        "2000 steps, as the paper prints for AdaLoRA; its other runs have twenty epochs. The weight of the penalty is",
        "not printed: here 0.5, the default of PEFT. The batch is that of Table 17 (the text says 32).",
    )
    budget = RankBudgetConfig(final=4, start=200, hold=1000, every=10, beta1=0.85, beta2=0.85, orthogonality=0.5)
    for (model, task), (lr, batch) in TABLE_17_ADALORA.items():
        adapter = _adapter("adalora", 8, 16.0)
        entry = _single(f"table17-{model}-adalora-{task}", model, adapter, _Cell(task, lr, batch), 3, *note)
        yield _with_train(entry, dataclasses.replace(entry.run.train, steps=2000, rank_budget=budget))


def _joint() -> Iterator[Recipe]:
    """Tables 3, 12 and 13: at most 5000 texts of a task, each step a batch of every task, the sum of their losses."""
    for table, tasks in JOINT.items():
        for model, seeds in SEEDS.items():
            for method, (rank, alpha, batch) in JOINT_METHODS.items():
                adapter = _adapter(method, rank, alpha)
                is_by_task = "task" in get_method(method).network.modes
                adapter = dataclasses.replace(adapter, tasks=len(tasks) if is_by_task else 1)
                if method == "mtl-lora":
                    adapter = dataclasses.replace(adapter, experts=3)
                train = _schedule(EPOCHS * (5000 // batch), TABLE_12.get((model, method), 5e-4))
                run = TextRunConfig(
                    suite="glue", tasks=tasks, model=f"hf:{architectures()[model]['hub']}", method=method,
                    adapter=adapter, classifier="frozen", head="roberta", batch=batch, examples=5000,
                    test_examples=500, max_length=256, train=dataclasses.replace(train, clip=3.0),
                )  # fmt: skip
                note = (*JOINT_NOTES.get(method, ()), *JOINT_NOTE, *FROZEN_HEAD, *GLUE_NOTE)
                yield Recipe(f"{table}-{model}-{method}", model, seeded(run, seeds[0]), seeds, note)


def _table_4() -> Iterator[Recipe]:
    """Table 4 and Fig. 2: MetaTT-5D at ranks 4, 6 and 8, and from rank 10 to 4 by sweeps at the ends of epochs."""
    note = (
        "Alpha and batch are not printed; they are those of Table 6 (rank 16 of the base model, 32 of the large one).",
        "The epochs of the sweeps are arrows in Fig. 2: here 8, 6 and 4 after epochs 5, 10 and 15.",
    )
    for model, row, trials in (("roberta-base", 16, 10), ("roberta-large", 32, 4)):
        batches = dict(zip(SIZES, by_task(TABLES_5_AND_6[model, "metatt-5d", row][2]), strict=True))
        for task in ("mrpc", "rte"):
            batch = batches[task]
            assert batch is not None
            cell = _Cell(task, 5e-4, int(batch))
            for rank in (4, 6, 8, 10):
                kind = "dmrg" if rank == 10 else f"adamw-r{rank}"
                adapter = _adapter("metatt-5d", rank, 0.5)
                unswept = _single(f"table4-{model}-{kind}-{task}", model, adapter, cell, trials, *note)
                yield _at_ends_of_epochs(unswept, cell) if rank == 10 else unswept


def _at_ends_of_epochs(unswept: Recipe, cell: _Cell) -> Recipe:
    """Return the recipe with sweeps after epochs 5, 10 and 15."""
    epoch = unswept.run.examples // cell.batch  # steps
    ranks = RankScheduleConfig(steps=(5 * epoch, 10 * epoch, 15 * epoch), ranks=(8, 6, 4), mode="paper")
    return _with_train(unswept, dataclasses.replace(unswept.run.train, rank_schedule=ranks))


def _with_train(entry: Recipe, train: TrainConfig) -> Recipe:
    return dataclasses.replace(entry, run=dataclasses.replace(entry.run, train=train))


def _commonsense(
    name: str, model: str, method: str, rank: int, n: int, epochs: int, *note: str, seeds: tuple[int, ...] = (0,)
) -> Recipe:
    """Return a run with batches of 32 questions, eight at a time, and frozen weights in bfloat16."""
    alpha, init = CAUSAL_STARTS.get(method, (2.0 * rank, ""))
    adapter = _adapter(method, rank, alpha, "q_proj,v_proj")
    if init:
        adapter = dataclasses.replace(adapter, init=init)
    examples = min(n, _without_val("commonsense", COMMONSENSE))
    run = CausalRunConfig(
        model=f"hf:{architectures()[model]['hub']}", dtype="bfloat16", method=method, adapter=adapter, batch=8,
        train=dataclasses.replace(_schedule(epochs * (examples // 32), 2e-4), accumulate=4), examples=examples,
        test_examples=100_000,
    )  # fmt: skip
    common = (
        "Answers are ranked by log-likelihood in the training prompt; the paper's numbers are lm-evaluation-harness's:",
        "merge into a folder for that (docs/papers/metatt.md). The paper prints no seed, length or precision.",
    )
    return Recipe(name, model, run, seeds, (*note, *common))


def _table_1() -> Iterator[Recipe]:
    """LoRA and MetaTT on Commonsense170k, two epochs."""
    note = (
        "The chosen settings are not printed. MetaTT: alpha is of {1, 2, 3}, the rate of {1, 2, 5}e-4; VeRA and LoTR:",
        "the rate is of {2, 5}e-4; LoRA: its rates are printed as 1e-1, 1e-2, 1e-5 (a slip, it seems), alpha is 2r.",
        "The paper reports the best of two epochs.",
    )
    for model, method, rank in TABLE_1:
        yield _commonsense(f"table1-{model}-{method}-r{rank}", model, method, rank, COMMONSENSE, 2, *note)


def _figure_13() -> Iterator[Recipe]:
    """Commonsense15k, one epoch; ranks 40 to 20 by r(i) = 20 + 20 (1 - (i/5)^2), and AdaLoRA's from 16 to 8."""
    note = (
        "15000 questions drawn from the 170k; rates tried were 2e-4 and 5e-4. The steps of the sweeps are stars in",
        "Fig. 13: here those of its AdaLoRA (every 84), after which the run is scored, too.",
    )
    sweeps = RankScheduleConfig(steps=(84, 168, 252, 336, 420), final=20, gamma=2.0, mode="paper")
    budget = RankBudgetConfig(final=8, start=84, hold=39, every=84, beta1=0.85, beta2=0.85, orthogonality=0.1)
    for name, method, rank, schedule, masks in (
        ("lora-r16", "lora", 16, None, None),
        ("metatt-4d-r20", "metatt-4d", 20, None, None),
        ("metatt-4d-r40", "metatt-4d", 40, None, None),
        ("metatt-4d-dmrg", "metatt-4d", 40, sweeps, None),
        ("adalora", "adalora", 16, None, budget),
    ):
        full_name = f"figure13-llama-2-7b-{name}"
        entry = _commonsense(full_name, "llama-2-7b", method, rank, 15_000, 1, *note, seeds=(0, 1, 2, 3, 4))
        run = entry.run
        assert isinstance(run, CausalRunConfig)
        train = dataclasses.replace(run.train, rank_schedule=schedule, rank_budget=masks)
        yield dataclasses.replace(entry, run=dataclasses.replace(run, train=train, evaluate_every=84))


def _changed(config: Any) -> dict[str, Any]:
    """Return what differs from the defaults of its class, and what a reader looks for first, as YAML types."""
    default = type(config)()
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value == getattr(default, field.name) and field.name not in SHOWN:
            continue
        if dataclasses.is_dataclass(value):
            value = _changed(value)
        elif isinstance(value, tuple):
            value = list(value)  # safe_dump has no tuples
        changed[field.name] = value
    return changed
