"""Count the figures of a package's readability: `python tools/house_figures.py [ROOT]`, with ROOT a checkout.

The table of docs/house.md is the output for two commits. Nothing here needs more than Python, but the row of the type
checker, which runs mypy of the environment with `--mypy`.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

VAGUE_NAMES = frozenset(
    "both each every few found given here held kept known least less made mine more most named nobody none once one "
    "other others own piece pieces same seen several stuff taken there thing things told used what where whole".split()
)
NOT_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
        tokenize.INDENT,
        tokenize.NEWLINE,
        tokenize.NL,
    }
)
SHAPE_MARKS = ("(", "[", " x ", "shape", "scalar")


@dataclass(frozen=True)
class Source:
    """A Python file with its syntax tree and its tokens."""

    path: Path
    text: str
    tree: ast.Module
    tokens: tuple[tokenize.TokenInfo, ...]


def read_sources(folder: Path) -> list[Source]:
    """Read every Python file below a folder."""
    sources = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text()
        tokens = tuple(tokenize.generate_tokens(io.StringIO(text).readline))
        sources.append(Source(path, text, ast.parse(text), tokens))
    return sources


def count_filled_lines(sources: list[Source]) -> int:
    """The number of non-blank lines."""
    return sum(bool(line.strip()) for source in sources for line in source.text.splitlines())


def tokens_per_line(sources: list[Source]) -> float:
    """Tokens per non-blank line; a docstring is one token on several lines, a comment is a line without tokens."""
    tokens = sum(token.type not in NOT_CODE for source in sources for token in source.tokens)
    return tokens / max(count_filled_lines(sources), 1)


def comments_per_100_lines(sources: list[Source]) -> float:
    """Comments per 100 non-blank lines."""
    comments = sum(token.type == tokenize.COMMENT for source in sources for token in source.tokens)
    return 100 * comments / max(count_filled_lines(sources), 1)


def assigned_names(tree: ast.AST) -> Iterator[str]:
    """Every name that is assigned, looped over or a parameter, once for each time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def share_of_vague_names(sources: list[Source]) -> float:
    """Percentage of the assigned names that are on the list of vague ones."""
    names = [name for source in sources for name in assigned_names(source.tree)]
    return 100 * sum(name in VAGUE_NAMES for name in names) / max(len(names), 1)


def is_public(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return not function.name.startswith("_")


def has_tensors(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True if an annotation of a parameter or of the result mentions a tensor."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [parameter.annotation for parameter in parameters] + [function.returns]
    return any("Tensor" in ast.unparse(annotation) for annotation in annotations if annotation is not None)


def public_functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public functions and methods, without those nested in another function."""
    bodies = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for node in getattr(body, "body", ()):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node):
                yield node


def gives_a_shape(docstring: str | None) -> bool:
    """True if a docstring has something that reads as a shape: parentheses or brackets with modes, or the word."""
    return docstring is not None and any(mark in docstring for mark in SHAPE_MARKS)


def share_without_shape(sources: list[Source]) -> float:
    """Percentage of the public functions with tensors whose docstring gives no shape."""
    functions = [f for source in sources for f in public_functions(source.tree) if has_tensors(f)]
    without = [f for f in functions if not gives_a_shape(ast.get_docstring(f))]
    return 100 * len(without) / max(len(functions), 1)


def find_class(sources: list[Source], name: str) -> ast.ClassDef | None:
    """The class of this name, if one of the sources defines it."""
    for source in sources:
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
    return None


def count_fields(sources: list[Source], name: str) -> int:
    """The annotated fields of a dataclass."""
    definition = find_class(sources, name)
    return sum(isinstance(node, ast.AnnAssign) for node in definition.body) if definition else 0


def count_methods(sources: list[Source], name: str) -> int:
    """The methods and properties of a class, special ones included."""
    definition = find_class(sources, name)
    return sum(isinstance(node, ast.FunctionDef) for node in definition.body) if definition else 0


def count_public_names(sources: list[Source]) -> int:
    """The names in `metalora.__all__`."""
    for source in sources:
        if source.path.name != "__init__.py" or source.path.parent.name != "metalora":
            continue
        for node in source.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return len(ast.literal_eval(node.value))
    return 0


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its end, without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return lines


def function_lengths(sources: list[Source]) -> list[int]:
    """Lines of every function, without docstrings."""
    nodes = (node for source in sources for node in ast.walk(source.tree))
    return [code_lines(node) for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def count_lines(sources: list[Source]) -> int:
    return sum(len(source.text.splitlines()) for source in sources)


def count_mypy_errors(root: Path) -> str:
    """The number of errors that mypy of this environment reports, with the settings of the checkout."""
    command = [sys.executable, "-m", "mypy", "--ignore-missing-imports", "src/metalora"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
    return str(output.count(": error:"))


def figures(root: Path, with_mypy: bool) -> dict[str, str]:
    """The figures of a checkout, by their names."""
    library = read_sources(root / "src" / "metalora")
    papers = read_sources(root / "papers" / "src")
    rows = {
        "tokens per non-blank line": f"{tokens_per_line(library):.1f}",
        "vague names among assigned names, %": f"{share_of_vague_names(library):.1f}",
        "comments per 100 lines": f"{comments_per_100_lines(library):.1f}",
        "public functions with tensors without a shape in their docstring, %": f"{share_without_shape(library):.0f}",
        "lines of a function without its docstring, median": f"{median(function_lengths(library)):.0f}",
        "the longest": str(max(function_lengths(library))),
        "names in `metalora.__all__`": str(count_public_names(library)),
        "fields of `Method`": str(count_fields(library, "Method")),
        "methods of `Adapter`": str(count_methods(library, "Adapter")),
        "lines of the library": str(count_lines(library)),
        "lines of the papers": str(count_lines(papers)),
    }
    if with_mypy:
        rows["errors of mypy"] = count_mypy_errors(root)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root", nargs="*", type=Path, default=[Path()], help="checkouts (default: the current folder)")
    parser.add_argument("--mypy", action="store_true", help="also count the errors of mypy, which takes a minute")
    arguments = parser.parse_args()
    columns = [figures(root, arguments.mypy) for root in arguments.root]
    for name in columns[0]:
        print("| " + " | ".join([name, *(column[name] for column in columns)]) + " |")


if __name__ == "__main__":
    main()
