"""What the parser of the command line prints in a box, as one line that names the flag and the nearest valid one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from metalora._util.shown import shown
from metalora._util.suggest import nearest

KINDS = {  # what the parser calls a value -> one of them, several
    "INT": ("a whole number", "whole numbers"),
    "FLOAT": ("a number", "numbers"),
    "STR": ("a text", "texts"),
    "PATH": ("a path", "paths"),
}
CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)\.")
REPEATED = re.compile(r"\{?\[(.+) \[\1 \.\.\.\]\]\}?")  # such as [STR INT [STR INT ...]]
VALUE = re.compile(r"Error parsing (--\S+?|\S+?):")
NO_VALUE = re.compile(r"Missing value for argument '(.*)'\.")
Section = list[tuple[int, str]]  # lines, each with its indentation


def usage_line(printed: str, command: str, arguments: Sequence[str]) -> str:
    """Return the parser's complaint as one line.

    Args:
        printed: What tyro has printed: a box whose parts are separated by lines.
        command: Program and verb, such as "metalora plan".
        arguments: The command line without the program.

    Example:
        >>> box = "╭─ Title ─╮\\n│ Unrecognized options: --jsn │\\n│ ── │\\n│ Perhaps:\\n│ --json"
        >>> usage_line(box, "metalora methods", ["methods", "--jsn"])
        'unknown flag --jsn; did you mean --json? (`metalora methods --help` lists all)'
    """
    sections = _sections(printed)
    said = " ".join(text for _, text in sections[0]) if sections else "the command line cannot be read"
    remark = f"(`{command} --help` lists all)"
    if said.startswith("Unrecognized options:"):
        return f"{_unknown(said, sections)} {remark}"
    if said.startswith("Missing from"):
        return f"missing {', '.join(_listed_names(sections[0]))} {remark}"
    if match := CHOICE.match(said):
        value, flag, choices = match.groups()
        names = [name for name in re.findall(r"'([^']*)'", choices) if name != "None"]
        return f"{flag}: unknown choice {shown(value)}{nearest(value, names)}"
    if match := NO_VALUE.match(said):
        return f"{match[1]}: a value is missing {remark}"
    if match := VALUE.match(said):
        given = " ".join(_values(match[1], arguments)) or "nothing"
        return f"{match[1]}: expected {_kind(sections)}, got {shown(given)}"
    return f"{said} {remark}"


def _sections(printed: str) -> list[Section]:
    """Return the parts of the box, without its title and its frame."""
    sections: list[Section] = [[]]
    for line in printed.splitlines():
        text = line.replace("│", " ").rstrip()
        words = text.strip()
        if words and not words.strip("─-"):
            sections.append([])
        elif words and words[0] not in "╭╰":
            sections[-1].append((len(text) - len(text.lstrip()), words))
    parts = [section for section in sections if section]
    has_plain_title = len(parts) > 1 and "╭" not in printed  # where no frame can be drawn, the title is a part
    return parts[1:] if has_plain_title else parts


def _unknown(said: str, sections: Sequence[Section]) -> str:
    """Name the first argument that the parser does not know, and the flag that it proposes instead."""
    name = said.partition(": ")[2].partition(", ")[0]
    if not name.startswith("-"):
        return f"unexpected argument {shown(name)}"
    proposed = [text for section in sections[1:] for _, text in section if text.startswith("--")]
    hint = f"; did you mean {re.split('[ ,]', proposed[0])[0]}?" if proposed else ""
    return f"unknown flag {name}{hint}"


def _listed_names(section: Section) -> list[str]:
    """Return the arguments that a list of the parser names; their descriptions are indented more."""
    lines = section[1:]
    least = min((indentation for indentation, _ in lines), default=0)
    return [text.partition(" ")[0] for indentation, text in lines if indentation == least]


def _values(flag: str, arguments: Sequence[str]) -> list[str]:
    """Return what follows a flag on the command line."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return [argument.partition("=")[2]]
        if argument == flag:
            values = list(arguments[position + 1 :])
            end = next((number for number, value in enumerate(values) if value.startswith("--")), len(values))
            return values[:end]
    return []


def _kind(sections: Sequence[Section]) -> str:
    """Return what a flag takes, from the parser's own help text of it."""
    for section in sections[1:]:
        if section[0][1] == "Argument helptext:" and len(section) > 1:
            return kind_in_words(section[1][1].partition(" ")[2])
    return "another value"


def kind_in_words(kind: str) -> str:
    """Return in words what a flag takes.

    Args:
        kind: The parser's own text of it.

    Example:
        >>> kind_in_words("INT|{[STR INT [STR INT ...]]}|{[INT [INT ...]]}")
        'a whole number, pairs of a text and a whole number or whole numbers'
        >>> kind_in_words("{None}|FLOAT"), kind_in_words("{None,model}|{[STR [STR ...]]}")
        ('a number', 'one of model or texts')
    """
    *others, last = [_form_in_words(form) for form in kind.replace("{None}|", "").split("|")]
    return f"{', '.join(others)} or {last}" if others else last


def _form_in_words(form: str) -> str:
    """Return one of the forms of a flag in words; a form that is no list of values is returned as it is."""
    if match := REPEATED.fullmatch(form):
        words = match[1].split()
        return f"pairs of {_joined(words)}" if len(words) > 1 else KINDS.get(words[0], (form, form))[1]
    if form.startswith("{"):
        return f"one of {', '.join(choice for choice in form[1:-1].split(',') if choice != 'None')}"
    return _joined(form.split())


def _joined(words: Sequence[str]) -> str:
    return " and ".join(KINDS.get(word, (word, word))[0] for word in words)
