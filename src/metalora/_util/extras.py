"""Which `pip install "metalora[...]"` brings a package that is not installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

# Module -> the extra of this distribution that installs it (see pyproject.toml).
EXTRAS = {
    "timm": "vision",
    "torchvision": "vision",
    "PIL": "vision",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "peft": "hf",
    "accelerate": "train",
    "sklearn": "knn",
    "pandas": "learner",
    "matplotlib": "plots",
    "trl": "trl",
    "fastapi": "serve",
    "starlette": "serve",
    "pydantic": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "multipart": "serve",
    "httpx": "client",
    "psycopg": "postgres",
    "psycopg_pool": "postgres",
    "ray": "ray",
    "optuna": "sweep",
    "submitit": "slurm",
}

IMPORT_SYSTEM = ("importlib", "importlib._bootstrap", "_frozen_importlib")
"""Names of the modules whose functions run between an import and a finder."""


def missing_package_message(error: ModuleNotFoundError) -> str:
    """Say in one line what to install, if an extra brings the missing module; otherwise the error's own message.

    Args:
        error: The error of the import.

    Example:
        >>> missing_package_message(ModuleNotFoundError("No module named 'timm'", name="timm"))
        'timm is not installed: pip install "metalora[vision]"'
    """
    module = (error.name or "").partition(".")[0]
    return _message(module) if module in EXTRAS else str(error)


def _message(module: str) -> str:
    return f'{module} is not installed: pip install "metalora[{EXTRAS[module]}]"'


class NamesExtras(MetaPathFinder):
    """Says what to install when a module of this library imports a package that nothing has found.

    It stands behind all other finders. The imports of other libraries are none of its business: they may try whether a
    package is there.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Return nothing, since nothing was found.

        Raises:
            ModuleNotFoundError: A module of this library imports a package of an extra; the message names the extra.
        """
        if name in EXTRAS and _importing_module().partition(".")[0] == "metalora":
            raise ModuleNotFoundError(_message(name), name=name)


def _importing_module() -> str:
    """Return the name of the module whose import is being done, "" if there is none."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__") in IMPORT_SYSTEM:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))


def name_missing_extras() -> None:
    """Have a missing package named with its extra, from now on."""
    if not any(isinstance(finder, NamesExtras) for finder in sys.meta_path):
        sys.meta_path.append(NamesExtras())
