"""Which `pip install "metalora[...]"` brings a package that is not installed."""

from __future__ import annotations

# Module -> the extra of this distribution that installs it (see pyproject.toml).
EXTRAS = {
    "timm": "vision",
    "torchvision": "vision",
    "PIL": "vision",
    "transformers": "hf",
    "peft": "hf",
    "accelerate": "train",
    "sklearn": "knn",
    "pandas": "learner",
    "matplotlib": "plots",
    "trl": "trl",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "multipart": "serve",
    "httpx": "serve",
    "psycopg": "postgres",
    "ray": "ray",
}


def missing_package_message(error: ModuleNotFoundError) -> str:
    """Say in one line what to install, if an extra brings the missing module; otherwise the error's own message.

    Args:
        error: The error of the import.

    Example:
        >>> missing_package_message(ModuleNotFoundError("No module named 'timm'", name="timm"))
        'timm is not installed: pip install "metalora[vision]"'
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return str(error)
    return f'{module} is not installed: pip install "metalora[{EXTRAS[module]}]"'
