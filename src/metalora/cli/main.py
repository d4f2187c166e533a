"""The command `metalora`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from metalora.cli import learner_verbs, serving_verbs, sweep_verb, verbs
from metalora.cli.render import run_verbs

VERBS: dict[str, Callable[..., None]] = {
    "fit": learner_verbs.fit,
    "adapt": learner_verbs.adapt,
    "predict": learner_verbs.predict,
    "recommend": learner_verbs.recommend,
    "evaluate": learner_verbs.evaluate,
    "finetune": learner_verbs.finetune,
    "sweep": sweep_verb.sweep,
    "serve": serving_verbs.serve,
    "tenants": serving_verbs.tenants,
    "methods": verbs.methods,
    "inspect": verbs.inspect,
    "plan": verbs.plan,
    "doctor": verbs.doctor,
    "merge": verbs.merge,
    "export": verbs.export,
    "convert": verbs.convert,
    "import": verbs.import_lora,
    "combine": verbs.combine,
    "bench": verbs.bench,
}


def main() -> None:
    """Run the command that is on the command line."""
    run_verbs(VERBS, "metalora", sys.argv[1:], "Tensor-network adapters for pre-trained PyTorch models.")


if __name__ == "__main__":
    main()
