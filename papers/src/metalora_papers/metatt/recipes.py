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

from metalora._util.suggest import closest, nearest
from metalora.config import AdapterConfig, ConditionConfig, RankScheduleConfig, TrainConfig
from metalora.zoo import architectures
from metalora_papers.config import CausalRunConfig, TextRunConfig

# In the order of Tables 5 and 6; training texts as published, and texts of the published dev set, which is `test`.
SIZES = {
    "cola": (8551, 1043), "mnli": (392702, 9815), "mrpc": (3668, 408), "qnli": (104743, 5463),
    "qqp": (363846, 40430), "rte": (2490, 277), "sst2": (67349, 872), "stsb": (5749, 1500),
}  # fmt: skip
SEEDS = {"roberta-base": (33305628, 2025, 42), "roberta-large": (56346, 2025, 42)}
EPOCHS, COMMONSENSE = 20, 170420
VAL_SHARES = {"glue": 0.1, "commonsense": 0.01}  # as data.glue and data.commonsense part them
SHOWN = ("suite", "method", "rank", "alpha", "batch", "examples", "seed")  # in a file even where they are the default
# (model, method, rank) -> alpha, learning rate in thousandths and batch, task by task
TABLES_5_AND_6 = {
    ("roberta-base", "metatt-4d", 8): ("4 4 .5 4 4 4 .5 4", "1 1 1 1 1 1 1 1", "8 8 8 8 16 16 8 8"),
    ("roberta-base", "metatt-4d", 24): ("4 4 4 .5 .5 .5 4 .5", ".5 1 .5 1 1 1 .5 1", "8 32 16 16 32 16 32 16"),
    ("roberta-base", "metatt-4d", 64): (
        ".5 .5 .5 .5 .5 .5 .5 .5", "1 .5 .5 1 1 .5 1 .5", "32 8 32 16 32 8 8 8",
    ),
    ("roberta-large", "metatt-4d", 16): (".5 .5 .5 .5 .5 .5 4 .5", "1 1 .5 1 1 .5 1 1", "8 32 32 32 16 8 16 32"),
    ("roberta-large", "metatt-4d", 32): (
        "4 .5 .5 .5 .5 .5 4 .5", ".5 1 1 1 .5 .5 .5 1", "32 16 32 32 8 32 32 16",
    ),
    ("roberta-base", "metatt-5d", 16): (".5 .5 .5 .5 .5 .5 .5 .5", ".5 1 1 1 1 1 .5 1", "32 16 8 8 8 8 16 8"),
    ("roberta-base", "metatt-5d", 64): (
        ".5 .5 .5 .5 .5 .5 .5 .5", ".5 .5 1 1 .5 .5 1 1", "32 8 16 16 16 32 16 8",
    ),
    ("roberta-large", "metatt-5d", 32): (
        ".5 .5 .5 .5 .5 .5 .5 .5", "1 1 .5 1 1 .5 .5 1", "32 8 32 32 16 8 8 16",
    ),
    ("roberta-large", "metatt-5d", 64): (
        ".5 .5 .5 .5 .5 .5 .5 .5", ".5 1 .5 .5 .5 .5 .5 .5", "16 32 16 16 16 16 16 8",
    ),
}  # fmt: skip
# (table, model, task) -> rank, alpha, learning rate, batch
TABLES_14_AND_17 = {
    ("table14", "roberta-base", "cola"): (4, 8, 5e-4, 16), ("table14", "roberta-base", "mrpc"): (32, 64, 2e-4, 8),
    ("table14", "roberta-base", "rte"): (8, 16, 2e-4, 16), ("table14", "roberta-large", "cola"): (64, 128, 2e-4, 16),
    ("table14", "roberta-large", "mrpc"): (32, 64, 2e-4, 8), ("table14", "roberta-large", "rte"): (8, 16, 2e-4, 16),
    ("table17", "roberta-base", "cola"): (4, 8, 5e-4, 16), ("table17", "roberta-base", "mrpc"): (4, 8, 2e-4, 8),
    ("table17", "roberta-base", "rte"): (4, 8, 2e-4, 16), ("table17", "roberta-large", "cola"): (4, 8, 2e-4, 16),
    ("table17", "roberta-large", "mrpc"): (4, 8, 2e-4, 8), ("table17", "roberta-large", "rte"): (4, 8, 2e-4, 16),
}  # fmt: skip
JOINT = {"table3": ("cola", "mrpc", "rte"), "table13": ("cola", "mrpc", "rte", "qnli")}
TABLE_1 = (
    ("llama-2-7b", "lora", 8), ("llama-2-7b", "lora", 16), ("llama-2-7b", "metatt-4d", 16),
    ("llama-2-7b", "metatt-4d", 256), ("llama-2-13b", "lora", 8), ("llama-2-13b", "lora", 32),
    ("llama-2-13b", "metatt-4d", 16), ("llama-2-13b", "metatt-4d", 64),
)  # fmt: skip
GLUE_NOTE = (
    "Head: the mean over tokens and one linear layer, drawn at random and frozen; the paper's is RoBERTa's own.",
    "A tenth of the training texts is kept as `val` and the published dev set is `test`; the paper reports the best of",
    "its epochs on that set, this run its last step.",
)


@dataclass(frozen=True)
class Recipe:
    """A run of the paper by name.

    Attributes:
        name: Its name.
        architecture: The architecture it is for, a key of `metalora.zoo.architectures()`.
        run: The configuration, with the first seed.
        seeds: The paper's seeds.
        note: What the paper does not print and what is done in another way, line by line.
    """

    name: str
    architecture: str
    run: TextRunConfig | CausalRunConfig
    seeds: tuple[int, ...]
    note: tuple[str, ...]

    @property
    def adapter(self) -> AdapterConfig:
        """The adapter of the run; every recipe has one."""
        assert self.run.adapter is not None
        return self.run.adapter

    def yaml(self, seed: int | None = None) -> str:
        """Return the file of the run: its note, then what differs from the defaults.

        Args:
            seed: A seed instead of the first of the paper's.
        """
        import yaml

        run = self.run if seed is None else seeded(self.run, seed)
        seeds = ", ".join(map(str, self.seeds))
        comments = [f"MetaTT (arXiv:2506.09105), {self.name}; seeds {seeds}", *self.note]
        head = "".join(f"# {line}\n" for line in comments)
        return head + yaml.safe_dump(_changed(run), sort_keys=False, width=120)


def recipe(name: str) -> Recipe:
    """Return the recipe of that name; ValueError names the nearest ones."""
    by_name = recipes()
    if name not in by_name:
        suggestion = nearest(name, closest(name, by_name, count=3, cutoff=0.3))
        raise ValueError(f"unknown recipe {name!r}{suggestion}; `metalora-papers recipe` lists all {len(by_name)}")
    return by_name[name]


@cache
def recipes() -> dict[str, Recipe]:
    """Return all recipes by name, TABLE-MODEL-METHOD..., in the order of the tables."""
    in_order = [*_table_1(), *_table_2(), *_joint(), *_table_4(), *_lora(), *_figure_13()]
    return {item.name: item for item in in_order}


def seeded(run: Any, seed: int) -> Any:
    """Return the same run with another seed of the batches and of the adapter."""
    return dataclasses.replace(run, seed=seed, adapter=dataclasses.replace(run.adapter, seed=seed))


def _adapter(method: str, rank: int, alpha: float, targets: str) -> AdapterConfig:
    return AdapterConfig(method, rank, alpha=alpha, targets=targets, condition=ConditionConfig(scope="constant"))


def _schedule(steps: int, lr: float) -> TrainConfig:
    """AdamW without weight decay, 6 % warm-up, then linearly to zero; nothing is rounded before it is scored."""
    return TrainConfig(steps=steps, lr=lr, schedule="linear", warmup=0.06, store="float32")


def _without_val(suite: str, n: int) -> int:
    """Return how many of n texts are left for training when the validation texts are apart."""
    return n - round(VAL_SHARES[suite] * n)


def _single(name: str, model: str, adapter: AdapterConfig, task: str, lr: float, batch: int, *note: str) -> Recipe:
    """Return the run of one GLUE task: all its training texts, twenty epochs."""
    published, test = SIZES[task]
    examples = _without_val("glue", published)
    steps = EPOCHS * (examples // batch)
    run = TextRunConfig(
        suite="glue", tasks=(task,), model=f"hf:{architectures()[model]['hub']}", method=adapter.method,
        adapter=adapter, classifier="frozen", train=_schedule(steps, lr), batch=batch, examples=examples,
        test_examples=test, max_length=256,
    )  # fmt: skip
    seeds = SEEDS[model]
    return Recipe(name, model, seeded(run, seeds[0]), seeds, (*note, *GLUE_NOTE))


def _table_2() -> Iterator[Recipe]:
    """MetaTT on single GLUE tasks, with the hyper-parameters of Tables 5 and 6."""
    for (model, method, rank), rows in TABLES_5_AND_6.items():
        note = ("Table 5 prints this row as rank 4; its parameters and Table 2 say 8.",) if rank == 8 else ()
        columns = [row.split() for row in rows]  # alphas, learning rates, batches, each task by task
        for task, *cells in zip(SIZES, *columns, strict=True):
            alpha, lr, batch = map(float, cells)
            name = f"table2-{model}-{method}-r{rank}-{task}"
            adapter = _adapter(method, rank, alpha, "query,value")
            yield _single(name, model, adapter, task, round(lr * 1e-3, 4), int(batch), *note)


def _lora() -> Iterator[Recipe]:
    """LoRA on single GLUE tasks."""
    for (table, model, task), (rank, alpha, lr, batch) in TABLES_14_AND_17.items():
        adapter = _adapter("lora", rank, float(alpha), "query,value")
        yield _single(f"{table}-{model}-lora-{task}", model, adapter, task, lr, batch)


def _joint() -> Iterator[Recipe]:
    """Tables 3 and 13: at most 5000 texts of a task, each step a batch of every task, the sum of their losses."""
    note = (
        "LoRA's alpha is not printed (here twice the rank, as elsewhere in the paper). A batch is of every task; an",
        "epoch is that of the largest. MoE-LoRA and MTL-LoRA of the table are other networks than those here.",
    )
    for table, tasks in JOINT.items():
        for model, seeds in SEEDS.items():
            for method in ("lora", "metatt-4d", "metatt-4+1d"):
                adapter = _adapter(method, 8, 16.0 if method == "lora" else 2.0, "query,value")
                adapter = dataclasses.replace(adapter, tasks=len(tasks) if method == "metatt-4+1d" else 1)
                run = TextRunConfig(
                    suite="glue", tasks=tasks, model=f"hf:{architectures()[model]['hub']}", method=method,
                    adapter=adapter, classifier="frozen", batch=16, examples=5000, test_examples=500, max_length=256,
                    train=dataclasses.replace(_schedule(EPOCHS * (5000 // 16), 5e-4), clip=3.0),
                )  # fmt: skip
                yield Recipe(f"{table}-{model}-{method}", model, seeded(run, seeds[0]), seeds, (*note, *GLUE_NOTE))


def _table_4() -> Iterator[Recipe]:
    """Table 4 and Fig. 2: MetaTT-5D at ranks 4, 6 and 8, and from rank 10 to 4 by sweeps at the ends of epochs."""
    note = (
        "Alpha and batch are not printed; they are those of Table 6 (rank 16 of the base model, 32 of the large one).",
        "The epochs of the sweeps are arrows in Fig. 2: here 8, 6 and 4 after epochs 5, 10 and 15.",
    )
    for model, row in (("roberta-base", 16), ("roberta-large", 32)):
        batches = dict(zip(SIZES, map(int, TABLES_5_AND_6[model, "metatt-5d", row][2].split()), strict=True))
        for task in ("mrpc", "rte"):
            batch = batches[task]
            for rank in (4, 6, 8, 10):
                kind = "dmrg" if rank == 10 else f"adamw-r{rank}"
                adapter = _adapter("metatt-5d", rank, 0.5, "query,value")
                unswept = _single(f"table4-{model}-{kind}-{task}", model, adapter, task, 5e-4, batch, *note)
                yield _at_ends_of_epochs(unswept, batch, SIZES[task][0]) if rank == 10 else unswept


def _at_ends_of_epochs(unswept: Recipe, batch: int, published: int) -> Recipe:
    """Return the recipe with sweeps after epochs 5, 10 and 15."""
    epoch = _without_val("glue", published) // batch  # steps
    ranks = RankScheduleConfig(steps=(5 * epoch, 10 * epoch, 15 * epoch), ranks=(8, 6, 4), mode="paper")
    return _with_sweeps(unswept, ranks)


def _with_sweeps(unswept: Recipe, ranks: RankScheduleConfig) -> Recipe:
    train = dataclasses.replace(unswept.run.train, rank_schedule=ranks)
    return dataclasses.replace(unswept, run=dataclasses.replace(unswept.run, train=train))


def _commonsense(name: str, model: str, method: str, rank: int, n: int, epochs: int, *note: str) -> Recipe:
    """Return a run with batches of 32 questions, eight at a time, and frozen weights in bfloat16."""
    adapter = _adapter(method, rank, 2.0 * rank if method == "lora" else 1.0, "q_proj,v_proj")
    if method != "lora":
        adapter = dataclasses.replace(adapter, init="ze-no-no-id")
    examples = min(n, _without_val("commonsense", COMMONSENSE))
    run = CausalRunConfig(
        model=f"hf:{architectures()[model]['hub']}", dtype="bfloat16", method=method, adapter=adapter, batch=8,
        train=dataclasses.replace(_schedule(epochs * (examples // 32), 2e-4), accumulate=4), examples=examples,
        test_examples=100_000,
    )  # fmt: skip
    common = (
        "Answers are ranked by log-likelihood in the training prompt; the paper's numbers are lm-evaluation-harness's:",
        "merge into a folder for that (docs/metatt.md). The paper prints no seed, length or precision.",
    )
    return Recipe(name, model, run, (0,), (*note, *common))


def _table_1() -> Iterator[Recipe]:
    """LoRA and MetaTT on Commonsense170k, two epochs."""
    note = (
        "The chosen alpha and rate are not printed: alpha is of {1, 2, 3}, the rate of {1, 2, 5}e-4; LoRA's alpha is",
        "2r, its rates are printed as 1e-1, 1e-2, 1e-5 (a slip, it seems). The paper reports the best of two epochs.",
    )
    for model, method, rank in TABLE_1:
        yield _commonsense(f"table1-{model}-{method}-r{rank}", model, method, rank, COMMONSENSE, 2, *note)


def _figure_13() -> Iterator[Recipe]:
    """Commonsense15k, one epoch; ranks 40 to 20 by r(i) = 20 + 20 (1 - (i/5)^2)."""
    note = (
        "15000 questions drawn from the 170k; rates tried were 2e-4 and 5e-4. The steps of the sweeps are stars in",
        "Fig. 13: here those of its AdaLoRA (every 84).",
    )
    model, n = "llama-2-7b", 15_000
    for method, rank in (("lora", 16), ("metatt-4d", 20), ("metatt-4d", 40)):
        yield _commonsense(f"figure13-{model}-{method}-r{rank}", model, method, rank, n, 1, *note)
    unswept = _commonsense(f"figure13-{model}-metatt-4d-dmrg", model, "metatt-4d", 40, n, 1, *note)
    ranks = RankScheduleConfig(steps=(84, 168, 252, 336, 420), final=20, gamma=2.0, mode="paper")
    yield _with_sweeps(unswept, ranks)


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
