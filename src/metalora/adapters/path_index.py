"""Paths of modules and matrices, and the patterns that match them."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase


def matches(path: str, pattern: str) -> bool:
    """Whether a glob pattern matches the path of a module, or its last components.

    Example:
        >>> matches("encoder.layer.0.attention.query", "attention.query")
        True
    """
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"*.{pattern}")


class PathIndex:
    """Paths by their last words, so that thousands of patterns that are paths are matched in a short time.

    Args:
        paths: The paths, in their order.

    Example:
        >>> PathIndex(["a.query", "b.query", "b.value"]).matching("b.*")
        ['b.query', 'b.value']
    """

    def __init__(self, paths: Collection[str]):
        self.paths = list(paths)
        self._by_last_word: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_last_word.setdefault(path.rpartition(".")[2], []).append(path)

    def matching(self, pattern: str) -> list[str]:
        """Return the paths that a pattern matches, as `matches` does."""
        is_glob = any(character in pattern for character in "*?[")
        candidates = self.paths if is_glob else self._by_last_word.get(pattern.rpartition(".")[2], [])
        return [path for path in candidates if matches(path, pattern)]
