"""The flag --config of a verb: a YAML file of settings, which become the defaults of the other flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from metalora.config import AdapterConfig, from_dict, read_yaml
from metalora.learner.config import LearnerConfig
from metalora.learner.finetuning_config import FineTuneConfig

FLAG = "--config"
SettingsFile = Annotated[
    Path | None,
    tyro.conf.arg(name="config", help="YAML file of settings, such as best.yaml of a sweep; other flags change them"),
]
Reader = Callable[[str], dict[str, Any]]
Verb = Callable[..., None]


def takes_settings(read: Reader) -> Callable[[Verb], Verb]:
    """Return a decorator of a verb that has the flag --config.

    Args:
        read: Path of a file -> parameters of the verb and their new defaults.
    """

    def decorate(verb: Verb) -> Verb:
        verb.read_settings = read  # type: ignore[attr-defined]
        return verb

    return decorate


def defaults_of(verb: Verb, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the defaults that a command line gives a verb by --config; none without this flag.

    Args:
        verb: The verb.
        arguments: The command line after the verb.

    Raises:
        ValueError: The file cannot be read, or has a setting that the verb does not.
    """
    read: Reader | None = getattr(verb, "read_settings", None)
    path = _value_of_flag(arguments)
    return {} if read is None or path is None else read(path)


def _value_of_flag(arguments: Sequence[str]) -> str | None:
    path = None
    for number, argument in enumerate(arguments):
        if argument.startswith(f"{FLAG}="):
            path = argument.partition("=")[2]
        elif argument == FLAG and number + 1 < len(arguments):
            path = arguments[number + 1]
    return path


def with_defaults(verb: Callable[..., Any], defaults: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a verb whose parameters have other defaults.

    Args:
        verb: The verb.
        defaults: Name of a parameter -> its default.

    Example:
        >>> def verb(steps=5):
        ...     return steps
        >>> with_defaults(verb, {"steps": 7})(), with_defaults(verb, {"steps": 7})(steps=9)
        (7, 9)
    """

    @functools.wraps(verb)
    def changed(*values: Any, **named: Any) -> Any:
        return verb(*values, **{**defaults, **named})

    signature = inspect.signature(verb)
    parameters = [
        parameter.replace(default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    changed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return changed


def learner_settings(path: str) -> dict[str, Any]:
    """Return the settings of a learner in a file, as parameters of `fit`.

    Args:
        path: The file.

    Raises:
        ValueError: The file is no YAML, or has a setting that is unknown or wrong.
    """
    return {"config": from_dict(LearnerConfig, read_yaml(path), path)}


def finetuning_settings(path: str) -> dict[str, Any]:
    """Return the settings of a fine-tuning in a file, with those of its adapter below `adapter`, as parameters.

    Args:
        path: The file.

    Raises:
        ValueError: The file is no YAML, or has a setting that is unknown or wrong.
    """
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: expected a mapping of settings to values")
    others = {name: value for name, value in values.items() if name != "adapter"}
    adapter = from_dict(AdapterConfig, values.get("adapter", {}), f"{path}: adapter")
    return {"adapter": adapter, "config": from_dict(FineTuneConfig, others, path)}
