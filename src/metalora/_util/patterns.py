"""Regular expressions that come from a file: what they may cost is counted before they are matched.

Python's matcher tries one way through a pattern after another. `(([a-z]+)+)+!` has more ways through a path of 40
letters than a machine can try, and nothing in the syntax tells such a pattern from a harmless one: real files have
several `.*` and alternatives in groups. So the ways are counted, for every text that is to be matched.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any

from metalora._util.shown import shown

LONGEST_PATTERN = 100_000  # characters; a list of all targets of a large model, joined by |, has 20,000
MOST_PATTERNS = 10_000
STEPS_PER_TEXT = 100_000  # about a millisecond; the patterns of real files take some hundreds
STEPS = 5_000_000  # of all patterns of a file and all texts together, a few seconds
SPECIAL = frozenset("*+?{|(")
"""Without one of these characters a pattern has a single way through a text."""
IGNORES_CASE = re.compile(r"\(\?[a-zA-Z]*i")  # it may stand in a text or for a group alone, which does no harm
CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda character: f"{character}_".isidentifier(),
}
Ways = dict[int, int]  # position in the text -> number of ways that lead there

_parser: Any = import_module("re._parser")  # Python's own parser of patterns, so that both read a pattern alike


def check_patterns(patterns: Iterable[Any], texts: Sequence[str], place: str, expression: str = "{}") -> None:
    """Check that every pattern is a regular expression that is matched against the texts in a short time.

    The steps of a matcher without memory are counted, and not taken: all ways that lead to the same place of the
    pattern and the same position of the text are counted at once, so that the count is fast where the matcher is not.

    Args:
        patterns: The patterns, as the file has them.
        texts: What they are to be matched against, such as the module paths of a model.
        place: The file and the entry, for messages.
        expression: What a pattern is put into before it is matched, such as PEFT's r"(.*\\.)?({})$".

    Raises:
        ValueError: There are too many patterns; or one is not a text, not a regular expression, too long, refers back
            to a group, or could take too many steps.

    Example:
        >>> check_patterns([r".*\\.(q|v)_proj"], ["layers.0.q_proj"], "adapter_config.json: target_modules")
        >>> check_patterns(["([a-z]+)+!"], ["a" * 40], "adapter_config.json: rank_pattern")
        Traceback (most recent call last):
        ValueError: adapter_config.json: rank_pattern: '([a-z]+)+!' could take too long to match
    """
    left = STEPS
    for number, pattern in enumerate(patterns):
        if number == MOST_PATTERNS:
            raise ValueError(f"{place}: expected at most {MOST_PATTERNS:,} patterns")
        if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
            raise ValueError(f"{place}: {shown(pattern)}, expected a text of at most {LONGEST_PATTERN:,} characters")
        parsed = _parse(pattern, expression, place)
        if SPECIAL.isdisjoint(pattern):
            continue
        for text in texts:
            counter = _StepCounter(text, min(STEPS_PER_TEXT, left), IGNORES_CASE.search(pattern) is not None)
            try:
                counter.ways(parsed, {0: 1})
            except _TooManySteps:
                raise ValueError(f"{place}: {shown(pattern)} could take too long to match") from None
            left -= counter.steps


def _parse(pattern: str, expression: str, place: str) -> Any:
    """Return the syntax tree of a pattern; ValueError if it has none, or refers back to a group."""
    try:
        re.compile(pattern)  # without the expression around it, whose brackets may close those of the pattern
        parsed = _parser.parse(expression.format(pattern))
        re.compile(expression.format(pattern))
    except RecursionError:
        raise ValueError(f"{place}: {shown(pattern)} is nested too deeply") from None
    except (re.error, OverflowError, ValueError) as error:
        raise ValueError(f"{place}: {shown(pattern)} is not a regular expression ({error})") from None
    return parsed


class _TooManySteps(Exception):
    pass


class _StepCounter:
    """Counts the ways that a pattern has through the beginning of a text.

    Every item of a syntax tree takes the ways that lead to it and returns those that lead on. A step is one item for
    one way. The work is never more than the number of steps.
    """

    def __init__(self, text: str, limit: int, ignores_case: bool):
        self.limit, self.steps = limit, 0
        # What a character is compared as; a step too many does no harm.
        self.readings = [{c, c.lower(), c.upper()} if ignores_case else {c} for c in text]

    def ways(self, items: Any, start: Ways) -> Ways:
        """Return the ways behind a sequence of items."""
        for operation, argument in items:
            if not start:
                break
            self._count(start)
            start = self._item(str(operation), argument, start)
        return start

    def _count(self, ways: Ways) -> None:
        self.steps += sum(ways.values())
        if self.steps > self.limit:
            raise _TooManySteps

    def _item(self, operation: str, argument: Any, start: Ways) -> Ways:
        if operation == "BRANCH":
            return _sum(self.ways(alternative, start) for alternative in argument[1])
        if operation == "SUBPATTERN":
            return self.ways(argument[3], start)
        if operation == "ATOMIC_GROUP":
            return self.ways(argument, start)
        if operation.endswith("_REPEAT"):  # greedy, lazy or possessive: the ways are the same, their order is not
            least, most, body = argument
            return self._repeat(int(least), int(most), body, start)
        if operation in ("ASSERT", "ASSERT_NOT"):  # it looks ahead or back, and stays where it is
            direction, body = argument
            back = 0 if direction > 0 else body.getwidth()[0]
            self.ways(body, {place - back: count for place, count in start.items() if place >= back})
            return start
        if operation == "AT":
            return start
        if operation.startswith("GROUPREF"):  # how far it reaches is not known here
            raise _TooManySteps
        return {place + 1: count for place, count in start.items() if self._fits(operation, argument, place)}

    def _fits(self, operation: str, argument: Any, place: int) -> bool:
        """Return whether the character at a place is one that an item of a single character takes."""
        if place >= len(self.readings) or operation == "FAILURE":
            return False
        return any(_is_one_of(character, operation, argument) for character in self.readings[place])

    def _repeat(self, least: int, most: int, body: Any, start: Ways) -> Ways:
        behind: Counter[int] = Counter()
        rounds = 0
        while start:
            self._count(start)
            if rounds >= least:
                behind.update(start)
            if rounds >= most or rounds > least + len(self.readings):  # no round beyond leads further
                break
            start = self.ways(body, start)
            rounds += 1
        return behind


def _is_one_of(character: str, operation: str, argument: Any) -> bool:
    """Return whether an item of a single character, or a part of a set, takes a character."""
    if operation == "ANY":
        return True
    if operation in ("LITERAL", "NOT_LITERAL"):
        return bool(ord(character[0]) == argument) == (operation == "LITERAL")
    if operation == "RANGE":
        return bool(argument[0] <= ord(character[0]) <= argument[1])
    if operation == "CATEGORY":
        name = str(argument).removeprefix("CATEGORY_")
        return CATEGORIES[name.removeprefix("NOT_")](character) != name.startswith("NOT_")
    assert operation == "IN", operation
    is_negated = str(argument[0][0]) == "NEGATE"
    parts = argument[1:] if is_negated else argument
    return any(_is_one_of(character, str(part), value) for part, value in parts) != is_negated


def _sum(many: Iterable[Ways]) -> Ways:
    total: Counter[int] = Counter()
    for ways in many:
        total.update(ways)
    return total
