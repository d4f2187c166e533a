"""The command `metalora`."""

from __future__ import annotations

import sys

from metalora.cli import verbs
from metalora.cli.render import run_verbs

VERBS = {
    "methods": verbs.methods,
    "inspect": verbs.inspect,
    "plan": verbs.plan,
    "merge": verbs.merge,
    "export": verbs.export,
    "convert": verbs.convert,
    "import": verbs.import_lora,
    "bench": verbs.bench,
}


def main() -> None:
    """Entry point of the command."""
    run_verbs(VERBS, "metalora", sys.argv[1:], "Tensor-network adapters of pre-trained PyTorch models.")


if __name__ == "__main__":
    main()
