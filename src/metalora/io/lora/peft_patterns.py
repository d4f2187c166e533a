"""The patterns of PEFT's configurations, such as `rank_pattern`: regular expressions of the ends of module paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from metalora._util.patterns import check_patterns

AS_PEFT_MATCHES = r"(.*\.)?({})$"  # PEFT's own expression around a pattern


def by_path(patterns: Mapping[str, Any] | None, paths: Sequence[str], place: str) -> dict[str, Any]:
    """Return the values that PEFT's patterns, such as `rank_pattern`, give to paths.

    Args:
        patterns: Regular expression of the end of a path -> value.
        paths: Paths of the targets.
        place: What messages name: a file, or a configuration, and the field.

    Returns:
        Path -> value, by the first pattern that the path ends with, as PEFT matches them; without the paths that no
        pattern matches.

    Raises:
        ValueError: A pattern is not a regular expression, or could take too long to match (`check_patterns`).

    Example:
        >>> by_path({"query": 4}, ["layer.0.query", "layer.0.value"], "rank_pattern")
        {'layer.0.query': 4}
    """
    if not patterns:
        return {}
    check_patterns(patterns, paths, place, AS_PEFT_MATCHES)
    compiled = [(re.compile(AS_PEFT_MATCHES.format(pattern)), value) for pattern, value in patterns.items()]
    values = {path: next((value for end, value in compiled if end.match(path)), None) for path in paths}
    return {path: value for path, value in values.items() if value is not None}
