"""Plain values of the YAML and JSON texts that people write; a key that is there twice is an error."""

from __future__ import annotations

import json
from typing import Any

from metalora._util.shown import cut, shown


def parse_yaml(text: str, place: str) -> Any:
    """Return the values of a YAML text.

    Args:
        text: The text.
        place: What messages call it, such as its file.

    Raises:
        ValueError: It is not YAML, or a mapping has a key twice, of which YAML would take the last.

    Example:
        >>> parse_yaml("lr: 0.1\\nlr: 0.2", "run.yaml")
        Traceback (most recent call last):
        ValueError: run.yaml: line 2: key 'lr' is there twice
    """
    import yaml  # only configuration files need it

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is that of a date, or of an integer of many digits
        one_line = " ".join(str(error).split())  # PyYAML's message has several lines
        raise ValueError(f"{place}: not valid YAML: {one_line}") from None
    except RecursionError:
        raise ValueError(f"{place}: not valid YAML: nested too deeply") from None
    _check_unique_keys(root, place)
    return values


def parse_json(text: str, place: str) -> Any:
    """Return the values of a JSON text.

    Args:
        text: The text.
        place: What messages call it, such as its file.

    Raises:
        ValueError: It is not JSON, or an object has a key twice, of which Python would take the last.

    Example:
        >>> parse_json('{"r": 1,\\n "r": 2}', "adapter_config.json")
        Traceback (most recent call last):
        ValueError: adapter_config.json: line 2: key 'r' is there twice
    """
    is_unique = True

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_unique
        values = dict(pairs)
        is_unique = is_unique and len(values) == len(pairs)
        return values

    try:
        values = json.loads(text, object_pairs_hook=to_dict)
    except RecursionError:
        raise ValueError(f"{place}: not JSON (nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({cut(str(error))})") from None
    if not is_unique:  # JSON is YAML except for its tabs, and YAML's parser knows the lines
        parse_yaml(text.replace("\t", " "), place)
        raise ValueError(f"{place}: a key is there twice")
    return values


def _check_unique_keys(root: Any, place: str) -> None:
    """Raise a ValueError for the first mapping of YAML's nodes that has a key twice."""
    nodes: list[Any] = [root]
    visited: set[int] = set()
    while nodes:
        node = nodes.pop()
        if node is None or id(node) in visited:  # an alias may lead back to its own anchor
            continue
        visited.add(id(node))
        if node.id == "sequence":
            nodes += node.value
        if node.id != "mapping":
            continue
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            name = (key.tag, str(key.value))
            if name in keys:
                where = f"{place}: line {key.start_mark.line + 1}" if root.end_mark.line else place
                raise ValueError(f"{where}: key {shown(key.value)} is there twice")
            keys.add(name)
            nodes.append(value)
