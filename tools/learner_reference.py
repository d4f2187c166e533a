"""Print docs/learner-reference.md: `python tools/learner_reference.py > docs/learner-reference.md`.

The page has the public names of metalora.learner, each with the first sentence of its docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import metalora.learner as learner
from metalora._util.field_texts import texts_of_fields
from metalora.learner.config import LearnerConfig

HEADER = """# Reference of `metalora.learner`

`python tools/learner_reference.py > docs/learner-reference.md` writes this page; do not edit it. `help(NAME)` prints
all of a name: arguments, shapes, errors and an example. The guide is [your own tasks](own-tasks.md)."""


def first_sentence(thing: Any) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(thing) or "").split("\n")[0]


def public_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield name and function of the public methods and properties of a class."""
    for name, member in vars(cls).items():
        if not name.startswith("_") and (callable(member) or isinstance(member, (property, classmethod))):
            yield name, member


def arguments(function: Any) -> str:
    """Return the names of the arguments of a function, those with a default in brackets."""
    function = getattr(function, "__func__", function)
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        variadic = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
        has_default = parameter.default is not parameter.empty
        parts.append(f"[{parameter.name}]" if has_default else variadic + parameter.name)
    return ", ".join(parts)


def members_table(cls: type) -> list[str]:
    """Return the table of the methods and properties of a class."""
    lines = ["| name | |", "|---|---|"]
    for name, member in public_members(cls):
        call = name if isinstance(member, property) else f"{name}({arguments(member)})"
        lines.append(f"| `{call}` | {first_sentence(getattr(member, '__func__', member))} |")
    return lines


def settings_table(config: type) -> list[str]:
    """Return the table of the fields of a configuration, with the text below each of them."""
    texts = texts_of_fields(config)
    lines = ["| setting | default | |", "|---|---|---|"]
    for field in dataclasses.fields(config):
        is_simple = field.default is not dataclasses.MISSING
        default = repr(field.default) if is_simple else "LoRA, rank 8" if field.name == "adapter" else "{}"
        lines.append(f"| `{field.name}` | {default} | {texts[field.name]} |")
    return lines


def page() -> str:
    """Return the page."""
    lines = [HEADER]
    for name in learner.__all__:
        thing = getattr(learner, name)
        title = name if inspect.isclass(thing) else f"{name}({arguments(thing)})"
        lines += ["", f"## `{title}`", "", first_sentence(thing)]
        if thing is LearnerConfig or name == "FineTuneConfig":
            lines += ["", *settings_table(thing)]
        elif inspect.isclass(thing) and list(public_members(thing)):
            lines += ["", *members_table(thing)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())
