"""Every number of every configuration and of every flag has a range, and what is out of it is refused by its name."""

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import typing
from pathlib import Path

import pytest

from metalora._util.number_range import Items, Range
from metalora._util.plain_values import parse_json, parse_yaml
from metalora._util.shown import LONGEST
from metalora.bench.config import BenchConfig
from metalora.cli.main import VERBS
from metalora.cli.render import run_verbs
from metalora.config import AdapterConfig, Configuration, TrainConfig, from_dict, read_yaml

SOURCES = {"metalora": Path("src/metalora"), "metalora_papers": Path("papers/src/metalora_papers")}
ROOT = Path(__file__).parents[1]


def configuration_classes():
    """All dataclasses whose name ends in Config, in files whose name does; PEFT's are checked through AdapterConfig."""
    for package, folder in SOURCES.items():
        for path in sorted((ROOT / folder).rglob("*config.py")):
            if "peft" in path.parts:
                continue
            module = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
            for name, cls in inspect.getmembers(importlib.import_module(module), dataclasses.is_dataclass):
                if name.endswith("Config") and cls.__module__ == module:
                    yield cls


CLASSES = list(configuration_classes())


def numbers_in(hint):
    """Whether a type has a number somewhere."""
    if typing.get_origin(hint) is typing.Literal:
        return False
    return hint in (int, float) or any(numbers_in(argument) for argument in typing.get_args(hint))


def hints_of(cls):
    return typing.get_type_hints(cls, include_extras=True)


def fields_with_ranges():
    for cls in CLASSES:
        for name, hint in hints_of(cls).items():
            for part in [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range)]:
                yield pytest.param(cls, name, hint.__origin__, part, id=f"{cls.__name__}.{name}")


FIELDS = list(fields_with_ranges())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_declares_a_range(cls):
    assert issubclass(cls, Configuration)
    without = [n for n, hint in hints_of(cls).items() if numbers_in(hint) and not hasattr(hint, "__metadata__")]
    assert not without


def test_the_configurations_are_those_of_both_packages():
    assert {"AdapterConfig", "LearnerConfig", "BenchConfig", "TextTableConfig"} <= {cls.__name__ for cls in CLASSES}


def holders(hint):
    """Number -> value of a field, for each way in which the field holds numbers."""
    for option in typing.get_args(hint) or (hint,):
        arguments = typing.get_args(option)
        if option in (int, float):
            yield lambda number: number
        elif typing.get_origin(option) is dict:
            yield lambda number: {"key": number}
        elif typing.get_origin(option) is tuple and Ellipsis not in arguments:
            yield lambda number, arguments=arguments: (number,) * len(arguments)
        elif typing.get_origin(option) is tuple:
            yield lambda number: (number,)


def field_holders(hint):
    return list(holders(typing.Union[hint, None]))  # noqa: UP007 (the hint may be a dict or a tuple, whose arguments differ)


def outside(allowed):
    """Numbers that a range leaves out, by its bounds alone: next to them, a step away, far away, and no numbers."""
    low = allowed.least if allowed.least is not None else allowed.above
    high = allowed.most if allowed.most is not None else allowed.below
    numbers = [math.nan, math.inf, -math.inf, True]
    for bound, sign in ((low, -1), (high, 1)):
        if bound is not None:
            numbers += [math.nextafter(bound, sign * math.inf), int(bound) + sign, sign * 10**20, sign * 1e300]
    return numbers + [bound for bound in (allowed.above, allowed.below) if bound is not None]


@pytest.mark.parametrize("cls, name, hint, allowed", FIELDS)
def test_a_number_out_of_its_range_is_refused_by_name(cls, name, hint, allowed):
    for number, holder in itertools.product(outside(allowed), field_holders(hint)):
        value = holder(number)
        for make, place in (
            (lambda value=value: cls(**{name: value}), cls.__name__),
            (lambda value=value: from_dict(cls, {name: value}, "run.yaml"), "run.yaml"),
        ):
            with pytest.raises(ValueError) as error:
                make()
            assert str(error.value).startswith(f"{place}.{name}") and "expected" in str(error.value)
            assert len(str(error.value)) < LONGEST + 200


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_defaults_are_in_their_ranges(cls):
    assert from_dict(cls, dataclasses.asdict(cls())) == cls()


class Nothing:
    """A value that no field takes."""


def wrong_values():
    """(class, field, value) of another type, of no choice, too few, or there twice: for every field that can be."""
    for cls in CLASSES:
        for name, hint in hints_of(cls).items():
            yield pytest.param(cls, name, Nothing(), id=f"{cls.__name__}.{name}: another type")
            kind = getattr(hint, "__origin__", hint)
            if typing.get_origin(kind) is typing.Literal:
                yield pytest.param(cls, name, "no such choice", id=f"{cls.__name__}.{name}: no choice")
            if any(isinstance(part, Items) for part in getattr(hint, "__metadata__", ())):
                yield pytest.param(cls, name, (), id=f"{cls.__name__}.{name}: none")


@pytest.mark.parametrize("cls, name, value", list(wrong_values()))
def test_a_wrong_value_is_refused_by_name_in_python_as_in_a_file(cls, name, value):
    for make, place in (
        (lambda: cls(**{name: value}), cls.__name__),
        (lambda: from_dict(cls, {name: value}, "run.yaml"), "run.yaml"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value).startswith(f"{place}.{name}")


TEXTS = {
    "a rate of NaN": (TrainConfig, "lr: .nan", "lr is nan, expected more than 0"),
    "a negative rate": (TrainConfig, "lr: -1", "lr is -1.0, expected more than 0"),
    "negative steps": (TrainConfig, "steps: -5", "steps is -5, expected at least 0"),
    "a warm-up of seven": (TrainConfig, "warmup: 7", "warmup is 7.0, expected at least 0 and at most 1"),
    "no checkpoint": (TrainConfig, "checkpoint_every: 0", "checkpoint_every is 0, expected at least 1"),
    "no rank": (AdapterConfig, "rank: {}", "rank is empty, expected at least 1 item"),
    "a target twice": (BenchConfig, "targets: [query, query]", "targets[1] is 'query', which is there twice"),
    "steps beyond tensors": (
        TrainConfig,
        "steps: 99999999999999999999",
        "of a magnitude of at most 9223372036854775807",
    ),
    "an alpha of NaN": (AdapterConfig, "alpha: .nan", "alpha is nan, expected a finite number"),
    "an infinite alpha": (AdapterConfig, "alpha: -.inf", "alpha is -inf, expected a finite number"),
    "an alpha beyond single precision": (
        AdapterConfig,
        "alpha: -1.0e+39",
        "alpha is -1e+39, expected a finite number, of a magnitude of at most 3.4e+38",
    ),
    "an alpha beyond floats": (AdapterConfig, "alpha: 1" + "0" * 400, "alpha is inf, expected a finite number"),
    "a rank below": (AdapterConfig, "rank: {r: 0}", "rank.r is 0, expected at least 1"),
    "a seed beyond the generators": (AdapterConfig, f"seed: {2**64}", "expected at least 0 and at most"),
    "a long text": (AdapterConfig, "alpha: " + "x" * 9999, "expected float, got 'xxxx"),
    "a long key": (AdapterConfig, f"? {'x' * 9999}\n: 1", "unknown key 'xxxx"),
    "a long choice": (AdapterConfig, "widths: " + "x" * 9999, "unknown choice 'xxxx"),
    "a long list": (AdapterConfig, "condition: [" + "1, " * 9999 + "1]", "got [1, 1, "),
    "a section of nothing": (TrainConfig, "two_site: {tolerance: 1}", "two_site.tolerance is 1.0, expected at least 0"),
}


@pytest.mark.parametrize("cls, text, message", TEXTS.values(), ids=TEXTS)
def test_a_number_in_a_file_is_refused_with_the_file(cls, text, message, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        from_dict(cls, read_yaml(path), str(path))
    assert message in str(error.value) and str(error.value).startswith(str(path))
    assert len(str(error.value)) < len(str(path)) + 500 and "\n" not in str(error.value)


# ---- keys that are there twice, and other texts that cannot be read --------------------------------------------------
BAD_TEXTS = {
    "a key twice": (parse_yaml, "lr: 1\nsteps: 2\nlr: 3", "line 3: key 'lr' is there twice"),
    "a key twice below": (parse_yaml, "a:\n  b: 1\n  b: 2", "line 3: key 'b' is there twice"),
    "a key twice in a list": (parse_yaml, "- {c: 1}\n- {c: 1, c: 2}", "line 2: key 'c' is there twice"),
    "a key twice in one line": (parse_yaml, "{c: 1, c: 2}", "file: key 'c' is there twice"),
    "JSON": (parse_json, '{"lr": 1,\n\t"steps": 2,\n\t"lr": 3}', "line 3: key 'lr' is there twice"),
    "JSON below": (parse_json, '{"a": {"b": 1,\n "b": 2}}', "line 2: key 'b' is there twice"),
    "JSON in a list": (parse_json, '[{"b":1},\n{"b":1,"b":2}]', "line 2: key 'b' is there twice"),
    "YAML without an end": (parse_yaml, "[" * 3, "not valid YAML"),
    "deep YAML": (parse_yaml, "[" * 10_000, "nested too deeply"),
    "deep JSON": (parse_json, "[" * 200_000, "not JSON"),
    "a day that is none": (parse_yaml, "day: 2026-99-99", "not valid YAML"),
    "an integer of many digits": (parse_yaml, "rank: 1" + "0" * 9999, "not valid YAML"),
    "JSON of many digits": (parse_json, "1" + "0" * 9999, "not JSON"),
}


@pytest.mark.parametrize("parse, text, message", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_text_that_cannot_be_read(parse, text, message):
    with pytest.raises(ValueError) as error:
        parse(text, "file")
    assert message in str(error.value) and str(error.value).startswith("file") and len(str(error.value)) < 300


GOOD_TEXTS = {
    "the same key at two places": (parse_yaml, "a: {x: 1}\nb: {x: 1}"),
    "a number and its text": (parse_yaml, "1: a\n'1': b"),
    "an alias": (parse_yaml, "a: &a {x: 1}\nb: *a"),
    "nothing": (parse_yaml, ""),
    "JSON": (parse_json, '{"a": {"x": 1}, "b": {"x": [1, null]}}'),
}


@pytest.mark.parametrize("parse, text", GOOD_TEXTS.values(), ids=GOOD_TEXTS)
def test_a_text_that_can_be_read_is_read_as_before(parse, text):
    import yaml

    assert parse(text, "file") == (json.loads if parse is parse_json else yaml.safe_load)(text)


def test_an_alias_of_itself_ends():
    assert len(parse_yaml("a: &a [*a]", "file")) == 1


# ---- the command line ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("verb", VERBS, ids=VERBS)
def test_every_number_among_the_flags_declares_a_range(verb):
    for name, hint in hints_of(VERBS[verb]).items():
        parts = getattr(hint, "__metadata__", ())
        assert not numbers_in(hint) or any(isinstance(part, Range) for part in parts), name


WRONG_FLAGS = {
    "a field": (["plan", "--model", "roberta-base", "--rank", "0"], "AdapterConfig.rank is 0, expected at least 1"),
    "a field below": (["plan", "--model", "roberta-base", "--condition.clamp", "nan"], "clamp is nan, expected more"),
    "a flag": (["plan", "--model", "roberta-base", "--match-rank", "-2"], "--match-rank is -2, expected at least 1"),
    "a list": (
        ["combine", "a", "b", "--model", "m", "--out", "o", "--weights", "1", "inf"],
        "--weights[1] is inf, expected a finite number",
    ),
    "a fit": (["fit", "l", "--backbone", "b", "--data", "d", "--lr", "-1"], "lr is -1.0, expected more than 0"),
    "a fine-tuning": (["finetune", "b", "--out", "o", "--data", "d", "--steps", "-1"], "steps is -1, expected at"),
}


@pytest.mark.parametrize("arguments, message", WRONG_FLAGS.values(), ids=WRONG_FLAGS)
def test_a_wrong_number_on_the_command_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run_verbs(VERBS, "metalora", arguments, "about")
    words = capsys.readouterr().err.replace("│", " ").replace("|", " ").split()  # the parser may draw a box
    assert stop.value.code == 2 and message in " ".join(words)
