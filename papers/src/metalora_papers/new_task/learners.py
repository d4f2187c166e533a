"""The meta-trained learner of a run: trained once, and kept in the cache with what its training took."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import metalora
from metalora._util.files import write_atomically
from metalora.learner import Backbone, MetaLearner
from metalora_papers.cache import cache_folder
from metalora_papers.content import content_of, path_digest
from metalora_papers.metalora.labelled_items import LabelledItems
from metalora_papers.new_task.config import NewTaskRunConfig
from metalora_papers.new_task.cost import Cost, measured
from metalora_papers.new_task.items import training_pool

COST_FILE = "training.json"
DIGITS = 16
TRAINING_CODE = ("config.py", "zoo.py", "_util", "tensornet", "methods", "adapters", "fitting", "training", "learner")
OWN_FILES = (Path(__file__), Path(__file__).with_name("items.py"))


def meta_trained(run: NewTaskRunConfig, items: LabelledItems, backbone: Backbone) -> tuple[MetaLearner, Cost]:
    """Return the learner of a run and what its meta-training took, from the cache if it was trained before.

    Args:
        run: The run; it has a learner.
        items: The inputs; the notions that are trained are its tasks.
        backbone: The network, to which the adapter is attached.
    """
    place = _place(run)
    if (place / COST_FILE).is_file():
        learner = MetaLearner.from_pretrained(place / "learner", backbone=backbone.model)
        return learner, Cost(**json.loads((place / COST_FILE).read_text()))
    learner = MetaLearner(
        backbone,
        adapter=run.learner,
        steps=run.train.steps,
        lr=run.train.lr,
        holdout_items=0.0,
        validate_every=0,
    )
    _, cost = measured(lambda: learner.fit_pools([training_pool(items, run.pool)], holdout=0, report=False))
    place.mkdir(parents=True, exist_ok=True)
    learner.save_pretrained(place / "learner")
    write_atomically(place / COST_FILE, json.dumps(asdict(cost)).encode())  # last: it says that the learner is complete
    return learner, cost


def _place(run: NewTaskRunConfig) -> Path:
    """Return the folder of a learner in the cache: other code, other data and other settings have others."""
    identity = f"{_code_digest()} {content_of(run)} {run.shared_backbone}"
    return cache_folder("learners") / hashlib.sha256(identity.encode()).hexdigest()[:DIGITS]


def _code_digest() -> str:
    """Return a digest of the source files that train a learner: those of the library, and of this package."""
    library = Path(metalora.__file__).parent
    files = list(OWN_FILES)
    for name in TRAINING_CODE:
        files += [library / name] if name.endswith(".py") else sorted((library / name).rglob("*.py"))
    return hashlib.sha256("".join(map(path_digest, files)).encode()).hexdigest()[:DIGITS]
