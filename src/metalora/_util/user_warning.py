"""Warnings that point at the user's own line."""

import sys
import warnings

LIBRARIES = ("metalora", "metalora_papers", "peft", "tyro")  # packages between the user's line and the warning


def warn_user(message: str) -> None:
    """Warn at the first line outside of this library and its callers: Python shows the line that the user wrote.

    Args:
        message: The warning.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_user("targets are left out")
        >>> str(caught[0].message)
        'targets are left out'
    """
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in LIBRARIES:
        frame = frame.f_back
        level += 1
    warnings.warn(message, stacklevel=level)
