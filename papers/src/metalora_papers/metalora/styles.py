"""Ways of writing the same text: after a few words of a prompt, a reader knows how the text goes on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

CASES = ("as written", "lower", "upper")
VOWELS: dict[str, Mapping[int, int | None]] = {
    "all vowels": {},
    "no vowels": dict.fromkeys(map(ord, "aeiouAEIOU")),
    "digits": str.maketrans("aeiouAEIOU", "4310743107"),
}
SPACES = (" ", "_", ".")
ORDERS = ("forwards", "backwards")


@dataclass(frozen=True)
class Style:
    """A way of writing.

    Attributes:
        case: One of `CASES`.
        vowels: One of `VOWELS`: all of them, none, or a digit in the place of each.
        space: What stands between two words, one of `SPACES`.
        order: One of `ORDERS`, of the letters in each word.

    Example:
        >>> Style("upper", "no vowels", "_", "backwards").write("The best of both")
        'HT_TSB_F_HTB'
    """

    case: str
    vowels: str
    space: str
    order: str

    def write(self, text: str) -> str:
        """Return a text in this style."""
        words = text.translate(VOWELS[self.vowels]).split()
        if self.order == "backwards":
            words = [word[::-1] for word in words]
        written = self.space.join(words)
        return {"lower": written.lower, "upper": written.upper}.get(self.case, lambda: written)()


PLAIN = Style("as written", "all vowels", " ", "forwards")
ALL = [Style(*parts) for parts in itertools.product(CASES, VOWELS, SPACES, ORDERS)]


def _is_unseen(style: Style) -> bool:
    """Choose a third of the styles so that every part of a style is seen in training, in other company."""
    parts = (CASES.index(style.case), list(VOWELS).index(style.vowels), SPACES.index(style.space))
    return (sum(parts) + ORDERS.index(style.order)) % 3 == 1


STYLES = {
    "seen": [style for style in ALL if style != PLAIN and not _is_unseen(style)],
    "unseen": [style for style in ALL if _is_unseen(style)],
    "plain": [PLAIN],
}
"""Styles of training, styles that are only tested, and the plain text that the decoder was pre-trained on."""
