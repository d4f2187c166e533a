"""Learned numbers by rank, as the library counts them, on the query and value of RoBERTa-base."""

from __future__ import annotations

from math import log10

from drawings.picture import Picture
from metalora import AdapterConfig
from metalora.cost import summarise
from metalora.zoo import load_model

METHODS = {  # name in the plot -> method
    "LoRA": "lora",
    "MetaLoRA-CP": "metalora-cp",
    "TensLoRA QKV-Depth": "tenslora-qkv-depth",
    "MetaTT-4D": "metatt-4d",
    "MetaTT-5D": "metatt-5d",
    "VeRA": "vera",
}
RANKS = (1, 2, 4, 8, 16, 32, 64)
DASHES = ("none", "7 7", "10 3", "6 3 2 3", "12 4 3 4", "4 2")
WIDTH, HEIGHT = 350.0, 430.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 338.0, 56.0, 290.0  # of the area of the curves
LOWEST, HIGHEST = 2.8, 7.4  # powers of ten
POWERS = {3: "1 k", 4: "10 k", 5: "100 k", 6: "1 M", 7: "10 M"}


def counts() -> dict[str, list[int]]:
    """Count the learned numbers of each method at each rank; mapping nets are not among them."""
    model = load_model("roberta-base", weights=False)
    return {
        name: [summarise(model, AdapterConfig(method, rank=rank, targets="query,value")).parameters for rank in RANKS]
        for name, method in METHODS.items()
    }


def parameters() -> str:
    """Draw the curves, both axes logarithmic."""
    picture = Picture(WIDTH, HEIGHT, "Learned numbers by rank of six methods on query and value of RoBERTa-base")
    picture.text(WIDTH / 2, 18, "Learned numbers by rank", "middle bold")
    picture.text(WIDTH / 2, 37, "RoBERTa-base, query and value", "middle small")
    _draw_axes(picture)
    for number, (name, numbers) in enumerate(counts().items()):
        points = [(_x(rank), _y(count)) for rank, count in zip(RANKS, numbers, strict=True)]
        picture.curve(points, number, DASHES[number])
        _draw_key(picture, number, f"{name}: {numbers[RANKS.index(8)]:,} at rank 8")
    return picture.svg()


def _x(rank: int) -> float:
    return LEFT + (RIGHT - LEFT) * log10(rank) / log10(RANKS[-1])


def _y(count: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (log10(count) - LOWEST) / (HIGHEST - LOWEST)


def _draw_axes(picture: Picture) -> None:
    for power, label in POWERS.items():
        picture.line((LEFT, _y(10**power)), (RIGHT, _y(10**power)), "grid")
        picture.text(LEFT - 6, _y(10**power), label, "end small")
    for rank in RANKS:
        picture.line((_x(rank), TOP), (_x(rank), BOTTOM), "grid")
        picture.text(_x(rank), BOTTOM + 13, str(rank), "middle small")


def _draw_key(picture: Picture, number: int, words: str) -> None:
    y = BOTTOM + 36 + 17 * number
    picture.curve([(LEFT - 30, y), (LEFT + 4, y)], number, DASHES[number])
    picture.text(LEFT + 12, y, words, "small")
