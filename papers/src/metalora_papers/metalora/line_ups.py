"""The rows of the tables on images: which adapters are compared, at equal numbers of parameters or equal ranks."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from metalora._util.suggest import nearest
from metalora.adapters.attach import attach, detach
from metalora.config import AdapterConfig
from metalora.cost import match_parameters
from metalora.methods.records import SplitRank
from metalora.methods.registry import get_method
from metalora.zoo import load_model
from metalora_papers.config import TableConfig
from metalora_papers.metalora.backbones import build
from metalora_papers.metalora.domain_suite import IMAGE_SIZE
from metalora_papers.metalora.feature_source import generated_condition, static_condition
from metalora_papers.runs import ALIASES, FULL

GENERATED = ("metalora-cp", "metalora-tr")
STATIC = ("lora", "multi-lora", "moe-lora")
FILM, STATIC_FILM = "film", "film, static"
BY_NAME = (FILM, STATIC_FILM, FULL)
"""Rows that a table has only if it names them."""
AT_RANK = " at rank "  # part of the name of additional rows, which take the learning rate of their method
SEEN_CLASSES = 6
Adapters = dict[str, AdapterConfig | None]


def adapters(table: TableConfig) -> Adapters:
    """Return the rows that a table asks for, by name; ValueError for a name that it does not have."""
    every_row = _table_one(table)
    named = every_row | {FULL: None}
    for name in table.methods:
        if ALIASES.get(name, name) not in named:
            raise ValueError(f"table: unknown row {name!r}{nearest(name, [*named, *BY_NAME, *ALIASES])}")
    return {name: named[name] for name in (ALIASES.get(name, name) for name in table.methods or every_row)}


def _backbone(table: TableConfig) -> torch.nn.Module:
    """Return the untrained backbone without its classifier: it has the sizes of the trained one."""
    if table.model:
        model: Any = load_model(table.model, weights=False)
    else:
        model = build(table.backbone, _image_size(table), SEEN_CLASSES)
    model.reset_classifier(0)
    backbone: torch.nn.Module = model
    return backbone


def _image_size(table: TableConfig) -> int:
    return table.size if table.suite == "attributes" else IMAGE_SIZE


def _table_one(table: TableConfig) -> Adapters:
    """Return every static method at the smallest rank whose count reaches those of CP and TR.

    FiLM has no rank, so its rows, for a table that names them, have the count that it has.
    """
    model = _backbone(table)
    condition = generated_condition(table, model)
    cp = AdapterConfig("metalora-cp", table.rank, condition=condition, clip_rank=True)
    ring = AdapterConfig("metalora-tr", table.ring_rank, condition=condition, clip_rank=True)
    # The larger of both counts: no baseline has fewer parameters than either of the methods that are measured.
    budget = max(_count_attached(model, config, _image_size(table)) for config in (cp, ring))
    rows: Adapters = {"original": None, "metalora-cp": cp, "metalora-tr": ring}
    for name in STATIC:
        config = AdapterConfig(name, clip_rank=True, condition=static_condition(table))
        rows[name] = match_parameters(model, config, budget, at_least=True)
        if table.equal_rank:
            same_rank = dataclasses.replace(config, rank=_equal_rank(config, table.rank))
            rows[f"{name}{AT_RANK}{table.rank}"] = same_rank
    if table.equal_rank:
        rows[f"metalora-cp{AT_RANK}{table.ring_rank}"] = dataclasses.replace(cp, rank=table.ring_rank)
    films = {FILM: condition, STATIC_FILM: static_condition(table)}
    rows |= {name: AdapterConfig("film", condition=films[name]) for name in films if name in table.methods}
    return rows


def _equal_rank(config: AdapterConfig, rank: int) -> int:
    """Return the largest rank that is at most `rank` over all experts together."""
    method = get_method(config.method)
    if not method.uses_experts:
        return rank
    # Some methods divide the rank among the experts, others give it to each of them.
    return rank - rank % config.experts if method.has(SplitRank) else rank // config.experts


def _count_attached(model: torch.nn.Module, config: AdapterConfig, size: int) -> int:
    """Count the parameters of an adapter on images of this size, mapping net included."""
    # Attached, because the sizes of the layers alone do not say how wide the features of the condition are.
    count = attach(model, config, example=torch.zeros(1, 3, size, size)).num_params()
    detach(model)
    return count
