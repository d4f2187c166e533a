"""Which method, rank and readout: rules with a reason each, and the bytes and multiply-adds that follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from torch import nn

from metalora._util.number_range import Range
from metalora.config import AdapterConfig, Configuration
from metalora.cost import match_parameters, summarise

FEW_EXAMPLES = 100  # of a single task: below, an adapter fitted to it over-fits
RICH_EXAMPLES = 300  # of each of many tasks: from here on, training on every task pays
MANY_TASKS = 4  # from here on, tasks can teach an adapter what to look at
FITTING_SECONDS = 14.0  # of a LoRA with a head on 100 labelled pictures, 40 steps, on two CPU cores
LARGEST_RANK = 16  # more than this has not paid in any of the measurements
DEFAULT_RANK = 8
BYTES = 4  # of a float32 number
HEADER_BYTES = 4000  # of an adapter file, about
UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2}


@dataclass(frozen=True)
class Need(Configuration):
    """What a user has and wants.

    Attributes:
        tasks: Number of tasks.
        examples: Labelled examples of a task.
        budget: Largest number of bytes of a task; None: no limit.
        latency: Seconds after which a new task must be ready; None: no limit.
    """

    tasks: Annotated[int, Range(least=1)]
    examples: Annotated[int, Range(least=4)]  # two classes with two examples each
    budget: Annotated[int | None, Range(least=1)] = None
    latency: Annotated[float | None, Range(above=0)] = None


@dataclass(frozen=True)
class Recommendation:
    """What to use, what it costs, and why.

    Attributes:
        strategy: Name of the rule that applied.
        method: Name of the method of the adapter; None: no adapter.
        rank: Its rank.
        readout: Name of the readout that a support set makes; None: a linear head is trained.
        task_bytes: Bytes that are stored for each task, estimated, without the layout of the file; None if they depend
            on the classes alone.
        shared_bytes: Bytes that all tasks share, estimated.
        overhead: Multiply-adds that the adapter adds, as a share of those of the layers that it adapts.
        command: How to start.
        reasons: Why, in words.
    """

    strategy: str
    method: str | None
    rank: int | None
    readout: str | None
    task_bytes: int | None
    shared_bytes: int
    overhead: float
    command: str
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as plain values."""
        return {**asdict(self), "reasons": list(self.reasons)}


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        name: Name of the strategy.
        applies: Whether it is for a need.
        reason: Why, with what was measured.
    """

    name: str
    applies: Callable[[Need], bool]
    reason: str


# The first rule that applies is taken; the last one always does.
RULES = (
    Rule(
        "meta-trained",
        lambda need: need.latency is not None and need.latency < FITTING_SECONDS,
        f"A new task must be ready soon: a readout takes one forward pass and milliseconds, fitting a LoRA to a task "
        f"about {FITTING_SECONDS:.0f} s.",
    ),
    Rule(
        "meta-trained",
        lambda need: need.tasks >= MANY_TASKS and need.examples < RICH_EXAMPLES,
        "Many tasks with few examples each: a static LoRA that is meta-trained through a readout reached 83 % on "
        "trained and 91 % on never-trained notions, LDA on frozen features 66 % and 90 %, a LoRA fitted to each "
        "support set 70 % and 90 % (suite attributes). Generated cores added nothing under the same readout.",
    ),
    Rule(
        "shared",
        lambda need: need.tasks >= MANY_TASKS,
        "Many tasks with many examples each: one tensor train with a task mode is trained on all of them, and stores "
        "rank x rank numbers for each.",
    ),
    Rule(
        "head",
        lambda need: need.examples < FEW_EXAMPLES,
        f"Few tasks with fewer than {FEW_EXAMPLES} examples: nothing can be learned across tasks, and an adapter "
        "fitted to 100 examples gained between 0 and 4 points over frozen features. With unlabelled inputs of the "
        "same kind, `metalora fit` without labels is worth a try: it reached 75 % where frozen features gave 66 %.",
    ),
    Rule(
        "fitted",
        lambda need: True,
        "A task with many examples: an adapter of its own is trained, LoRA if the budget allows it. MetaTT is smaller, "
        "not better: 6,656 numbers gave 78.9 %, a LoRA of 73,728 gave 80.5 % (mean of four text tasks).",
    ),
)


def recommend(model: nn.Module, backbone: str, need: Need, *, feature_width: int | None = None) -> Recommendation:
    """Recommend a method, its rank and a readout.

    Args:
        model: The network; its weights may be on the "meta" device.
        backbone: Its name, for the command.
        need: What the user has and wants.
        feature_width: Number of statistics of the frozen network, for the size of a readout; None: not known.

    Raises:
        ValueError: The budget is too small for anything.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> recommend(model, "mine", Need(tasks=40, examples=60, budget=20_000)).strategy
        'meta-trained'
        >>> recommend(model, "mine", Need(tasks=1, examples=40)).strategy
        'head'
    """
    rule = next(rule for rule in RULES if rule.applies(need))
    builders = {"meta-trained": _meta_trained, "shared": _shared, "head": _head, "fitted": _fitted}
    return builders[rule.name](model, backbone, need, rule.reason, feature_width)


def _meta_trained(model: nn.Module, backbone: str, need: Need, reason: str, width: int | None) -> Recommendation:
    config = AdapterConfig("lora", DEFAULT_RANK, targets="all", clip_rank=True)
    summary = summarise(model, config)
    reasons = [reason]
    task_bytes = None if width is None else 2 * need.examples * 2 * width  # both halves of phi, in half precision
    limit = ""
    if need.budget is not None and (task_bytes is None or task_bytes > need.budget):
        size = "" if task_bytes is None else f" of about {task_bytes:,} bytes"
        reasons.append(f"The readout{size} is stored in its compact form, within {need.budget:,} bytes (--max-bytes).")
        limit, task_bytes = f" --max-bytes {need.budget}", need.budget
    command = (
        f"metalora fit learner/ --backbone {backbone} --data labels.csv --adapter.rank {DEFAULT_RANK}; "
        f"metalora adapt learner/ --support task.csv --out task/{limit}"
    )
    return Recommendation(
        "meta-trained",
        "lora",
        DEFAULT_RANK,
        "kernel-ridge",
        task_bytes,
        summary.bytes,
        summary.overhead,
        command,
        tuple(reasons),
    )


def _shared(model: nn.Module, backbone: str, need: Need, reason: str, width: int | None) -> Recommendation:
    rank = LARGEST_RANK
    if need.budget is not None:
        rank = min(rank, int((need.budget / BYTES) ** 0.5))
    if rank < 1:
        raise ValueError(f"budget {need.budget} bytes: a task mode of rank 1 takes {BYTES}")
    config = AdapterConfig("metatt-4+1d", rank, targets="query,value", tasks=need.tasks, clip_rank=True)
    try:
        summary = summarise(model, config)
    except ValueError as error:
        fallback = _fitted(model, backbone, need, RULES[-1].reason, width)
        note = f"A tensor train over layers and tasks does not fit this network ({error}), so each task gets its own."
        return replace(fallback, reasons=(note, *fallback.reasons))
    command = f"metalora plan --model {backbone} --method metatt-4+1d --rank {rank} --tasks {need.tasks}"
    reasons = (reason, f"Rank {rank}: {rank * rank} numbers for each task, and its head.")
    shared = summary.bytes - BYTES * rank * rank * need.tasks
    return Recommendation(
        "shared",
        "metatt-4+1d",
        rank,
        None,
        BYTES * rank * rank,
        shared,
        summary.overhead,
        f"{command} --targets query,value",
        reasons,
    )


def _head(model: nn.Module, backbone: str, need: Need, reason: str, width: int | None) -> Recommendation:
    command = f"metalora finetune {backbone} --data task.csv --method head --out run/"
    return Recommendation("head", None, None, None, None, 0, 0.0, command, (reason,))


def _fitted(model: nn.Module, backbone: str, need: Need, reason: str, width: int | None) -> Recommendation:
    config, note = _within_budget(model, need.budget)
    if config is None:
        head = _head(model, backbone, need, reason, width)
        return replace(head, reasons=(reason, note))
    summary = summarise(model, config)
    targets = config.targets if isinstance(config.targets, str) else ",".join(config.targets)
    command = (
        f"metalora finetune {backbone} --data task.csv --method {config.method} --rank {config.rank} "
        f"--targets {targets} --out run/"
    )
    rank = config.rank if isinstance(config.rank, int) else None
    return Recommendation(
        "fitted", config.method, rank, None, summary.bytes, 0, summary.overhead, command, (reason, note)
    )


def _within_budget(model: nn.Module, budget: int | None) -> tuple[AdapterConfig | None, str]:
    """Return the first of LoRA and MetaTT that fits into a budget, and why; no adapter if neither does."""
    lora = AdapterConfig("lora", DEFAULT_RANK, targets="all", clip_rank=True)
    if budget is None:
        return lora, f"Without a budget: LoRA of rank {DEFAULT_RANK} at all layers."
    numbers = (budget - HEADER_BYTES) // BYTES
    candidates = [
        lora,
        replace(lora, targets="query,value"),
        AdapterConfig("metatt-4d", targets="query,value", clip_rank=True),
    ]
    for candidate in candidates:
        try:
            found = match_parameters(model, candidate, numbers)
        except ValueError:  # even rank 1 is too large, or the network has no such targets
            continue
        assert isinstance(found.rank, int)
        rank = min(found.rank, LARGEST_RANK)
        return replace(found, rank=rank), f"Rank {rank} is the largest up to {LARGEST_RANK} within {budget:,} bytes."
    return (
        None,
        f"No adapter fits into {budget:,} bytes (its file has a header of about {HEADER_BYTES:,}): a head does.",
    )


def parse_bytes(text: str) -> int:
    """Return a number of bytes such as "20kB", "1.5 MB" or "4096".

    Args:
        text: A number, and a unit: B, kB, MB, GB (powers of 1000), KiB or MiB (powers of 1024).

    Raises:
        ValueError: The text is not a size.

    Example:
        >>> parse_bytes("20kB"), parse_bytes("2 KiB"), parse_bytes("4096")
        (20000, 2048, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise ValueError(f"budget {text!r}: expected a size such as 20kB, 1MB or 4096")
    return int(float(match[1]) * UNITS[match[2].lower()])
