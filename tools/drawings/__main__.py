"""Write the drawings: `PYTHONPATH=tools python -m drawings` (into docs/images), or with another folder behind it."""

from __future__ import annotations

import sys
from pathlib import Path

from drawings.choice import choice
from drawings.networks import DRAWN, network
from drawings.parameters import parameters
from drawings.request import request

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def pictures() -> dict[str, str]:
    """Return the text of each file, by its name."""
    drawn = {f"network-{config.method}.svg": network(config) for config in DRAWN}
    return {**drawn, "request.svg": request(), "choose.svg": choice(), "parameters.svg": parameters()}


def main(folder: Path) -> None:
    """Write all drawings into a folder."""
    for name, text in pictures().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
