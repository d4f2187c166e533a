"""What rows of tables on text and on pictures train: any method by name, with the settings of MetaTT's paper."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Protocol

from metalora.config import AdapterConfig, ConditionConfig, RankBudgetConfig, RankScheduleConfig, TwoSiteConfig
from metalora.methods.method import Method
from metalora.methods.registry import METHODS, get_method
from metalora_papers.runs import FULL, FULL_LR_RATIO

FROZEN, HEAD = "frozen", "head alone"
RANKED = re.compile(r"(.+), rank (\d+)")
BEHIND_BLOCKS = ("attention.output.dense", "output.dense")
TRAIN_RANKS = dict.fromkeys(("a1", "a2", "a3", "b1", "b2", "b3"), 5)
PUBLISHED = {
    config.method: config
    for config in (
        AdapterConfig("vera", 1024),  # Table 2; the matrices are frozen, so that the rank costs little
        AdapterConfig("lotr", 32, alpha=2.0, scale="alpha", init="ze-no-id"),  # Table 2, D.5.4
        AdapterConfig("lorta", 8, alpha=8.0),  # Table 2; alpha is of the grid of Table 10
        AdapterConfig("lorta-in", 8, alpha=8.0),
        AdapterConfig("lorta-auto", 8, alpha=8.0),
        AdapterConfig("loretta-adp", 5, alpha=1.0, targets=BEHIND_BLOCKS),  # D.5.3
        AdapterConfig("loretta-rep", {**TRAIN_RANKS, "r": 8}, alpha=1.0, scale="alpha"),  # D.5.3
        AdapterConfig("mtl-lora", 4, experts=3),  # three experts give the count of Table 3
        AdapterConfig("moe-lora", 8, experts=4),  # Table 3, D.5.6
        AdapterConfig("moe-lora-shared", 8, experts=4),
        AdapterConfig("moe-lora-task", 8, experts=4),
    )
}
"""Method -> rank, alpha, start, experts, and targets if they are not the table's; of RoBERTa-base."""
WEIGHT_DECAY = {"loretta-adp": 0.01, "loretta-rep": 0.01}  # D.5.3; 0 for all others
TIMES_FINAL_RANK = 2  # AdaLoRA starts with twice the rank that its budget leaves (Table 17)


class LineUpSettings(Protocol):
    """What a table's settings say of its rows."""

    @property
    def rank(self) -> int:
        """The rank of a method that the paper has none for."""

    @property
    def alpha(self) -> float:
        """Alpha of the tensor trains."""

    @property
    def init(self) -> str:
        """Initialisation codes of MetaTT-4D, core by core."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What is adapted."""

    @property
    def steps(self) -> int:
        """Steps of training."""


@dataclass(frozen=True)
class Trained:
    """What a row trains.

    Attributes:
        adapter: The adapter; None for none.
        full: Every weight of the encoder, without an adapter.
        heads: False: the heads are never trained.
        weight_decay: Of AdamW.
        rank_schedule: Sweeps.
        rank_budget: Masks of singular values.
        two_site: Bonds that are trained one after another.
    """

    adapter: AdapterConfig | None = None
    full: bool = False
    heads: bool = True
    weight_decay: float = 0.0
    rank_schedule: RankScheduleConfig | None = None
    rank_budget: RankBudgetConfig | None = None
    two_site: TwoSiteConfig | None = None

    @property
    def lr_ratio(self) -> float:
        """Its learning rate, as a multiple of the table's."""
        return FULL_LR_RATIO if self.full else 1.0


def is_row(name: str) -> bool:
    """Return whether `trained_by` knows the name.

    Example:
        >>> is_row("vera"), is_row("vera, rank 256"), is_row("verra")
        (True, True, False)
    """
    ranked = RANKED.fullmatch(name)
    return name in (FROZEN, HEAD, FULL) or (ranked[1] if ranked else name) in METHODS


def trained_by(table: LineUpSettings, name: str, tasks: int = 1) -> Trained:
    """Return what a row trains.

    Args:
        table: The settings.
        name: A method, "METHOD, rank R", or one of the rows without an adapter.
        tasks: Number of tasks that are trained together, for a method with a task mode.

    Raises:
        ValueError: An unknown method.
    """
    if name in (FROZEN, HEAD, FULL):
        return Trained(full=name == FULL, heads=name != FROZEN)
    ranked = RANKED.fullmatch(name)
    method, rank = (ranked[1], int(ranked[2])) if ranked else (name, 0)
    budget = None
    if method == "adalora":
        final = rank or table.rank
        # As in appendix I.1: 200 steps without, 1000 after the last choice, of 2000.
        budget = RankBudgetConfig(final=final, start=table.steps // 10, hold=table.steps // 2)
        rank = TIMES_FINAL_RANK * final
    adapter = adapter_for(table, method, rank=rank, tasks=tasks)
    return Trained(adapter, weight_decay=WEIGHT_DECAY.get(method, 0.0), rank_budget=budget)


def adapter_for(table: LineUpSettings, method: str, *, rank: int = 0, init: str = "", tasks: int = 1) -> AdapterConfig:
    """Return the adapter of a method: with the paper's settings where it prints them, otherwise with the table's.

    The tensor trains share the table's alpha. A method that divides alpha by the rank and TensLoRA's constructions have
    LoRA's scale of two, any other one a scale of one.

    Args:
        table: The settings.
        method: A method.
        rank: Its rank; 0 for the paper's or the table's.
        init: Initialisation codes of MetaTT-4D; empty for the table's. Further cores start as the identity.
        tasks: Number of tasks that are trained together.

    Raises:
        ValueError: An unknown method.
    """
    declared = get_method(method)
    config = PUBLISHED.get(method, AdapterConfig(method, table.rank))
    if rank:
        config = dataclasses.replace(config, rank=_with_rank(config.rank, rank))
    if method in core_codes(table.init):
        codes = core_codes(init or table.init)[method]
        config = dataclasses.replace(config, alpha=table.alpha, init="-".join(codes))
    elif config.alpha is None:
        config = dataclasses.replace(config, alpha=_alpha(declared, config))
    has_tasks = any("task" in spec.split() for spec in declared.factors.values())
    return dataclasses.replace(
        config,
        tasks=tasks if has_tasks else 1,
        targets=table.targets if config.targets == "all" else config.targets,
        condition=ConditionConfig(scope="constant"),
    )


def core_codes(init: str) -> dict[str, list[str]]:
    """Return the initialisation codes of every train, core by core, from those of MetaTT-4D.

    Example:
        >>> core_codes("ze-id-no-or")["metatt-4+1d"]
        ['ze', 'id', 'id', 'no', 'or']
    """
    zero, layer, *rest = init.split("-")
    proj, last = rest[:1], rest[1:]
    return {
        "metatt-4d": [zero, layer, *rest],
        "metatt-5d": [zero, layer, *proj, "id", *last],
        "metatt-4+1d": [zero, layer, "id", *rest],
        "metatt-6d": [zero, layer, *proj, "id", "id", *last],
    }


def _alpha(method: Method, config: AdapterConfig) -> float | None:
    """Return the alpha of a method for which the paper has none."""
    if method.scale != "alpha":
        assert isinstance(config.rank, int)
        return 2.0 * config.rank
    return 2.0 if method.name.startswith("tenslora-") else None


def _with_rank(published: int | dict[str, int] | tuple[int, ...], rank: int) -> int | dict[str, int]:
    """Return the rank, of LoRETTA_rep that of LoRA beside the ranks of its trains."""
    return {**published, "r": rank} if isinstance(published, dict) else rank
