"""What `make site` does to the pages of docs/ before mkdocs reads them (the key `hooks` of mkdocs.yml).

The pages link to files of the repository that lie outside docs/, so that the links work where the repository is read.
The site has a copy of each of them below `repository/`: a page for Markdown and code, the file itself for others.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path
from site_notebooks import list_of, page_of  # noqa: E402

ROOT = Path(__file__).parents[1]
COPIES = "repository"
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md")  # the navigation has them
LANGUAGES = {
    ".py": "python",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".sh": "bash",
    ".html": "html",
    "": "text",
}
SECTION = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.M | re.S)  # code, which has no links
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(?=[)\s])")
PICTURE = re.compile(r'<picture>\s*<source[^>]*dark[^>]*srcset="([^"]+)"[^>]*>\s*(<img[^>]*>)\s*</picture>')
IMAGE = re.compile(r"<img\b[^>]*>")
LIST_AFTER_TEXT = re.compile(r"^((?![-*+>|#\s]|\d+\. )[^\n]*\S[^\n]*)\n(?=(?:[-*+]|1\.) )", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of notebooks, and the copies of all files that a page links to, and of those that these link to."""
    _add_notebooks(files, config)
    waiting = list(ALWAYS)
    for file in files.documentation_pages():
        waiting += _files_outside(file.content_string, PurePosixPath("docs", file.src_uri))
    done: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        files.append(_copy(path, config))
        if path.endswith(".md") or (ROOT / path).is_dir():
            waiting += _files_outside(_text_of(path), PurePosixPath(path))
    return files


def _add_notebooks(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each notebook, and one that lists them."""
    notebooks = sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb"))
    for path in notebooks:
        place = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, place, content=page_of(path), inclusion=InclusionLevel.NOT_IN_NAV))
    if notebooks and files.get_file_from_path("notebooks/index.md") is None:
        files.append(File.generated(config, "notebooks/index.md", content=list_of(notebooks)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the text of a page with its links to files outside docs/ led to their copies."""
    source = _source_of(page.file.src_uri)
    here = PurePosixPath(page.file.src_uri).parent

    def on_site(match: re.Match[str]) -> str:
        path = _in_repository(match[2], source)
        if path is None:
            return match[0]
        anchor = match[3] or ""
        if not path.startswith("docs/") and not path.endswith(".md"):
            anchor = ""  # a line of a file of code
        return f"{match[1]}{os.path.relpath(_place_of(path), here)}{anchor}"

    def changed(text: str) -> str:
        text = IMAGE.sub(_as_markdown, PICTURE.sub(_as_two_images, text))
        return LIST_AFTER_TEXT.sub(r"\1\n\n", LINK.sub(on_site, text))

    return _outside_code(markdown, changed)


def _as_two_images(match: re.Match[str]) -> str:
    """Return a picture for two palettes as two images: the palette of the site is a choice of its reader."""
    source = _attribute(match[2], "src")
    light = match[2].replace(f'"{source}"', f'"{source}#only-light"')
    return light + match[2].replace(f'"{source}"', f'"{match[1]}#only-dark"')


def _as_markdown(match: re.Match[str]) -> str:
    """Return an image in Markdown: mkdocs checks the address of such an image, and fits it to the place of the page."""
    width = _attribute(match[0], "width")
    return f"![{_attribute(match[0], 'alt')}]({_attribute(match[0], 'src')})" + (
        f"{{ width={width} }}" if width else ""
    )


def _attribute(tag: str, name: str) -> str:
    """Return an attribute of a tag, empty if it has none."""
    match = re.search(rf'\b{name}="([^"]*)"', tag)
    return match[1] if match else ""


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Return a text, changed everywhere but in code."""
    parts = SECTION.split(markdown)
    return "".join(part if k % 2 else change(part) for k, part in enumerate(parts))


def _files_outside(markdown: str, source: PurePosixPath) -> Iterable[str]:
    """Return the files outside docs/ that a text links to."""
    for text in SECTION.split(markdown)[::2]:
        for match in LINK.finditer(text):
            path = _in_repository(match[2], source)
            if path is not None and not path.startswith("docs/") and path != "README.md":
                yield path


def _in_repository(link: str, source: PurePosixPath) -> str | None:
    """Return the file of a link, relative to the repository; none for one that does not exist."""
    path = os.path.normpath(source.parent / link)
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _place_of(path: str) -> str:
    """Return where the site has a file of the repository, relative to docs/."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{COPIES}/{path}/index.md"
    suffix = PurePosixPath(path).suffix
    return f"{COPIES}/{path}" if suffix == ".md" or suffix not in LANGUAGES else f"{COPIES}/{path}.md"


def _source_of(uri: str) -> PurePosixPath:
    """Return the file of the repository that a page comes from."""
    path = PurePosixPath(uri)
    if path.parts[0] != COPIES:
        return PurePosixPath("docs") / path
    original = PurePosixPath(*path.parts[1:])
    return original if (ROOT / original).exists() else original.with_suffix("")


def _copy(path: str, config: MkDocsConfig) -> File:
    """Return the copy of a file for the site."""
    place = _place_of(path)
    if not place.endswith(".md"):
        return File.generated(config, place, abs_src_path=str(ROOT / path))
    return File.generated(config, place, content=_text_of(path), inclusion=InclusionLevel.NOT_IN_NAV)


def _text_of(path: str) -> str:
    """Return the Markdown of a file or folder of the repository."""
    if path.endswith(".md"):
        return (ROOT / path).read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    if (ROOT / path).is_dir():
        names = sorted(file.name for file in (ROOT / path).iterdir() if file.is_file())
        return head + "\n".join(f"- [{name}]({PurePosixPath(path).name}/{name})" for name in names)
    content = (ROOT / path).read_text(encoding="utf-8")
    return f"{head}````{LANGUAGES[PurePosixPath(path).suffix]}\n{content}\n````\n"
