"""The way of a request of a learner, from a labelled support set to predictions."""

from __future__ import annotations

from drawings.picture import Picture

WIDTH = 350.0
LEFT, RIGHT, HALF = 10.0, 180.0, 160.0
GAP = 26.0  # between two boxes, for the arrow


def request() -> str:
    """Draw the way of a request."""
    picture = Picture(
        WIDTH,
        456,
        "A support set goes through the frozen network; its features make the adapter, if it is generated; the "
        "features of the adapted network make a readout by a formula; the readout labels new inputs.",
    )
    y = picture.box(LEFT, 10, WIDTH - 20, ["Support set", "some sixty labelled examples of a new task"], "question")
    picture.arrow([(LEFT + HALF / 2, y), (LEFT + HALF / 2, y + GAP)])
    features = y + GAP
    y = picture.box(LEFT, features, WIDTH - 20, ["Frozen network", "features of every stage"], "frozen")
    picture.arrow([(LEFT + HALF / 2, y), (LEFT + HALF / 2, y + GAP)])
    adapter = y + GAP
    y = picture.box(LEFT, adapter, HALF, ["Mapping net", "only if the adapter", "is generated"], "generated")
    picture.arrow([(LEFT + HALF / 2, y), (LEFT + HALF / 2, y + GAP)])
    adapted = y + GAP
    y = picture.box(LEFT, adapted, HALF, ["Network + adapter", "one forward pass,", "no gradient step"], "answer")
    picture.box(RIGHT, adapted, HALF, ["New inputs", "pictures, texts", "or numbers"], "question")
    picture.arrow([(RIGHT, adapted + 31), (LEFT + HALF, adapted + 31)])
    picture.arrow([(LEFT + HALF / 2, y), (LEFT + HALF / 2, y + GAP)])
    readout = y + GAP
    lines = ["Readout", "kernel ridge regression, by a formula;", "a task is stored in kilobytes"]
    y = picture.box(LEFT, readout, WIDTH - 20, lines, "answer")
    picture.arrow([(LEFT + HALF / 2, y), (LEFT + HALF / 2, y + GAP)])
    picture.box(LEFT, y + GAP, WIDTH - 20, ["Label, probability, novelty"], "question")
    picture.height = y + GAP + 29 + 10
    return picture.svg()
