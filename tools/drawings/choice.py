"""The chart of docs/choose.md: questions from top to bottom, the first "yes" has the answer."""

from __future__ import annotations

from drawings.picture import Picture, box_height

WIDTH = 350.0
LEFT, QUESTION, ANSWER = 8.0, 146.0, 156.0  # left edge, and widths of the two columns
GAP = 22.0  # between two rows, for the arrow

# question, answer; the first line of each is bold
ROWS = (
    (["Trained LoRAs", "there already?"], ["Convert, combine", "or mix them"]),
    (["Many tasks,", "fewer than 300", "labels each?"], ["A learner", "LoRA, rank 8,", "meta-trained"]),
    (["Many tasks,", "more labels?"], ["MetaTT-(4+1)D", "or a LoRA a task"]),
    (["No labels yet,", "many inputs?"], ["A learner", "trained without labels"]),
    (["Fewer than", "100 labels?"], ["No adapter", "LDA or readout on", "frozen features"]),
    (["Each input says", "what is asked?"], ["MetaLoRA-CP", "scope: sample"]),
    (["A LoRA is", "too large?"], ["MetaTT-4D, rank 8", "a tenth of its numbers"]),
)
LAST = ["Otherwise: plain LoRA", "rank 8, learning rate 0.002 to 0.003"]


def choice() -> str:
    """Draw the chart."""
    picture = Picture(WIDTH, 0, "Which method? Questions from top to bottom; the first yes has the answer.")
    picture.text(WIDTH / 2, 18, "Which method? The first yes answers.", "middle bold")
    middle = LEFT + QUESTION / 2
    y, above = 36.0, None
    for question, answer in ROWS:
        height = box_height(max(question, answer, key=len))
        top = y + (height - box_height(question)) / 2
        if above is not None:
            _draw_no(picture, middle, above, top)
        above = picture.box(LEFT, top, QUESTION, question, "question")
        _draw_yes(picture, y + height / 2, answer)
        y += height + GAP
    assert above is not None
    _draw_no(picture, middle, above, y)
    picture.height = picture.box(LEFT, y, WIDTH - 2 * LEFT, LAST, "answer") + 10
    return picture.svg()


def _draw_yes(picture: Picture, centre: float, answer: list[str]) -> None:
    left, right = LEFT + QUESTION, WIDTH - LEFT - ANSWER
    picture.box(right, centre - box_height(answer) / 2, ANSWER, answer, "answer")
    picture.arrow([(left, centre), (right, centre)])
    picture.text((left + right) / 2 - 2, centre - 11, "yes", "middle small")


def _draw_no(picture: Picture, x: float, start: float, end: float) -> None:
    picture.arrow([(x, start), (x, end)])
    picture.text(x + 8, (start + end) / 2 - 2, "no", "small")
