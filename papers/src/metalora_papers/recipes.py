"""The experiments of the papers at their own scale, by name."""

from __future__ import annotations

from metalora._util.suggest import closest, nearest
from metalora_papers.metatt import recipes as metatt
from metalora_papers.tenslora import recipes as tenslora


def all_recipes() -> dict[str, metatt.Recipe]:
    """Return the recipes of MetaTT and of TensLoRA by name."""
    return metatt.recipes() | tenslora.recipes()


def recipe(name: str) -> metatt.Recipe:
    """Return the recipe of that name; ValueError names the nearest ones."""
    by_name = all_recipes()
    if name not in by_name:
        suggestion = nearest(name, closest(name, by_name, count=3, cutoff=0.3))
        raise ValueError(f"unknown recipe {name!r}{suggestion}; `metalora-papers recipe` lists all {len(by_name)}")
    return by_name[name]
