"""What Python does when a module is the first that is imported, computed from the source files in milliseconds."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """A statement at the top of a module: it imports names of a module, or the module, and then defines names."""

    module: str | None = None
    names: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()


def read_packages(*folders: Path) -> dict[str, list[Step]]:
    """Return the steps of every module of some packages, by its full name."""
    modules = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = list(_steps(ast.parse(path.read_text()).body))
    return modules


def _steps(body: list[ast.stmt]) -> Iterator[Step]:
    """Yield the steps of statements in their order; functions and what only a type checker reads do not run."""
    for node in body:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Step(alias.name, (), ((alias.asname or alias.name).partition(".")[0],))
            case ast.ImportFrom():
                yield Step(
                    node.module,
                    tuple(alias.name for alias in node.names),
                    tuple(alias.asname or alias.name for alias in node.names),
                )
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield Step(defines=(node.name,))
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                yield from _steps(node.orelse)
            case ast.If() | ast.Try() | ast.With() | ast.For():
                for field in ("body", "handlers", "orelse", "finalbody"):
                    for part in getattr(node, field, []):
                        yield from _steps(part.body if isinstance(part, ast.ExceptHandler) else [part])
            case _:
                stored = (name for name in ast.walk(node) if isinstance(name, ast.Name))
                yield Step(defines=tuple(name.id for name in stored if isinstance(name.ctx, ast.Store)))


def missing_name(first: str, modules: dict[str, list[Step]]) -> str | None:
    """Return the import that fails if a module is the first that a process imports; None if all succeed."""
    try:
        _Process(modules).load(first)
    except ImportError as error:
        return str(error)
    return None


class _Process:
    """What a process has imported: the names that each module has defined so far."""

    def __init__(self, modules: dict[str, list[Step]]):
        self.modules = modules
        self.defined: dict[str, set[str]] = {}

    def load(self, name: str) -> None:
        """Import a module, and its packages before."""
        if name not in self.modules or name in self.defined:
            return
        self.load(name.rpartition(".")[0])
        if name not in self.defined:  # its package may have imported it
            self.defined[name] = set()
            for step in self.modules[name]:
                self.run(step, name)

    def run(self, step: Step, importer: str) -> None:
        """Run one statement of a module."""
        self.load(step.module or "")
        there = self.defined.get(step.module or "")
        for name in step.names if there is not None else ():
            if name != "*" and there.isdisjoint((name, "__getattr__")):
                if f"{step.module}.{name}" not in self.modules:
                    raise ImportError(f"{importer}: from {step.module} import {name}")
                self.load(f"{step.module}.{name}")
        self.defined[importer].update(there or () if step.defines == ("*",) else step.defines)
