"""Log lines as JSON: never contents, labels, keys or ids of tasks in full."""

from __future__ import annotations

import json
import logging
import sys
import time

LOGGER = logging.getLogger("metalora.serving")


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, and what `extra={"fields": ...}` gives."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{record.msecs:03.0f}Z", "level": record.levelname.lower()}
        line["message"] = record.getMessage()
        line |= getattr(record, "fields", {})
        return json.dumps(line)


def log_to_stderr() -> None:
    """Write the log of the service to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
