"""Write the address of the repository into what PyPI shows of a release; `.github/workflows/release.yml` runs it.

    python tools/release_address.py https://github.com/OWNER/REPOSITORY v0.1.0

PyPI has the text of a README without the files beside it, so its links and pictures need the whole address.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "papers")  # of the two distributions
RAW = "https://raw.githubusercontent.com/"


def with_addresses(text: str, repository: str, tag: str, folder: str = "") -> str:
    """Return a README whose links and pictures work on any page.

    Args:
        text: The README.
        repository: The address of the repository.
        tag: The tag of the release.
        folder: The folder of the README in the repository.
    """
    files = f"{repository}/blob/{tag}/"
    pictures = f"{RAW}{repository.partition('github.com/')[2]}/{tag}/"

    def linked(match: re.Match[str]) -> str:
        return f"]({files}{posixpath.normpath(posixpath.join(folder, match[1]))}{match[2] or ''})"

    def shown(match: re.Match[str]) -> str:
        return f'{match[1]}="{pictures}{posixpath.normpath(posixpath.join(folder, match[2]))}"'

    text = re.sub(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", linked, text)
    return re.sub(r'\b(src|srcset)="(?!https?:)([^"]+)"', shown, text)


def with_urls(project: str, repository: str, tag: str) -> str:
    """Return the text of a pyproject.toml with the addresses of the repository below its own."""
    urls = {
        "Source": repository,
        "Documentation": f"{repository}/tree/{tag}/docs",
        "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in urls.items())
    return re.sub(r'(\[project\.urls\][^\n]*\nHomepage = "[^\n]*\n)', rf"\g<1>{lines}", project)


def main(repository: str, tag: str) -> None:
    """Rewrite the README and the pyproject.toml of both distributions."""
    for folder in FOLDERS:
        readme, project = (ROOT / folder / name for name in ("README.md", "pyproject.toml"))
        readme.write_text(with_addresses(readme.read_text(), repository, tag, folder))
        project.write_text(with_urls(project.read_text(), repository, tag))


if __name__ == "__main__":
    main(*sys.argv[1:])
