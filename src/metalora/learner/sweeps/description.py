"""What a folder searches: written when a search begins, and compared when it goes on."""

from __future__ import annotations

import json
from pathlib import Path

from metalora._util.files import TEMPORARY, errors_for_users, write_atomically
from metalora._util.locks import locked
from metalora._util.plain_values import parse_json
from metalora._util.reading import read_text
from metalora.io.base_samples import sample_base
from metalora.learner.sweeps.config import DESCRIPTION_FILE, SweepConfig
from metalora.learner.sweeps.jobs import Job
from metalora.learner.sweeps.space import Space
from metalora.learner.sweeps.study import LOCKS


def describe(folder: Path, job: Job, config: SweepConfig, space: Space) -> None:
    """Write what is searched into a new folder.

    The budget is no part of it, so that a search may go on with a larger one.

    Args:
        folder: The folder of the search.
        job: What a trial trains.
        config: The choices.
        space: Those that fit the network.

    Raises:
        ValueError: The folder is of another search, has other files, or cannot be written.
    """
    model = job.backbone.model
    description = {
        "format": "metalora-sweep",
        "version": 1,
        "verb": job.verb,
        "backbone": job.backbone.name or type(model).__name__,
        "base": sample_base(model, (), ()),
        "data": job.data(),
        "settings": job.settings(space.first),
        "space": space.to_dict(),
        "test_items": config.test_items,
        "prune": config.prune,
        "seed": config.seed,
    }
    content, file = json.dumps(description, indent=1), folder / DESCRIPTION_FILE
    check_folder(folder)
    with errors_for_users(folder, "nothing was searched"):
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCKS / "folder"):
            if not file.is_file():
                return write_atomically(file, content.encode())
    before = parse_json(read_text(file), str(file))
    differing = [name for name, value in json.loads(content).items() if before.get(name) != value]
    if differing:
        raise ValueError(
            f"{file}: the search of this folder has other values of {', '.join(differing)}; give the same ones, or "
            "name another folder"
        )


def check_folder(folder: Path) -> None:
    """Raise a ValueError if a path is a file, or a folder with anything but a search that may be just beginning.

    Args:
        folder: The path.
    """
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    if DESCRIPTION_FILE not in names and any(name != LOCKS and not name.endswith(TEMPORARY) for name in names):
        raise ValueError(f"{folder}: exists already, and is not the folder of a sweep; name another one")
