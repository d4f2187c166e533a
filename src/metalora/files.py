"""Writing files whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a whole file or nothing; ValueError on a full disk or the like, and the old file stays as it was."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ValueError(f"{path}: could not be written ({error.strerror}); the old file is unchanged") from None
    finally:
        temporary.unlink(missing_ok=True)
