"""Configurations: plain values in and out, and errors that name the file, the key and what is known."""

import copy
import inspect
import pickle
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest

from metalora._util.suggest import nearest
from metalora.bench.config import BenchConfig
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig, from_dict, read_yaml, to_dict
from metalora.learner.config import LearnerConfig
from metalora.learner.finetuning_config import FineTuneConfig


def load_yaml(cls, path):
    return from_dict(cls, read_yaml(path), str(path))


CONFIGS = {
    "default": AdapterConfig(),
    "full": AdapterConfig(
        method="metalora-tr",
        rank={"r0": 2, "r1": 3, "r2": 2},
        alpha=4.0,
        targets=("layer1.*", "fc"),
        exclude=("fc",),
        generated=("C",),
        init={"A": "normal"},
        clip_rank=True,
        dropout=0.1,
        seed=3,
        condition=ConditionConfig(source="stem", stem="bn1", stages=("a", "b"), heads="shared", feature_size=4),
    ),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trip_through_plain_values_and_yaml(config, tmp_path):
    import yaml

    values = to_dict(config)
    assert from_dict(AdapterConfig, values) == config and values == asdict(config)
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k != "condition"})
    )
    assert load_yaml(AdapterConfig, path) == replace(config, condition=ConditionConfig())


def test_yaml_is_read_as_written(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: moe-lora\nrank: 4\nalpha: 8\ntargets: [q, v]\ncondition: {source: pooled, bound: 1}\n")
    condition = ConditionConfig(source="pooled", bound=1.0)
    want = AdapterConfig(method="moe-lora", rank=4, alpha=8.0, targets=("q", "v"), condition=condition)
    assert load_yaml(AdapterConfig, path) == want
    path.write_text("")
    assert load_yaml(AdapterConfig, path) == AdapterConfig()


BAD_YAML = {
    "an unknown key": ("rnak: 4", "unknown key 'rnak'; did you mean 'rank'?"),
    "an unknown key below": ("condition: {sorce: stem}", "condition: unknown key 'sorce'; did you mean 'source'?"),
    "a key that is near to none": ("zzzzzz: 4", "unknown key 'zzzzzz' (known: alpha, alpha_pattern, "),
    "a key that is a number": ("4: rank", "unknown key 4"),
    "a string for a number": ("alpha: big", "alpha: expected float, got 'big'"),
    "a fraction for a rank": ("rank: 2.5", "rank: expected int, got 2.5"),
    "a truth value for a rank": ("rank: yes", "rank: expected int, got True"),
    "a number for a truth value": ("clip_rank: 1", "clip_rank: expected bool, got 1"),
    "a fraction in a rank per bond": ("rank: {r0: 2.5}", "rank: expected int"),
    "a choice": ("condition: {source: stage}", "condition.source: unknown choice 'stage'; did you mean 'stages'?"),
    "a number among targets": ("targets: [q, 4]", "targets"),
    "a list": ("[1, 2]", "expected a mapping of keys to values"),
    "a section that is a number": ("condition: 4", "condition: expected a mapping"),
    "not YAML": ("rank: [1", "not valid YAML"),
}


@pytest.mark.parametrize("text, message", BAD_YAML.values(), ids=BAD_YAML)
def test_a_bad_file_is_an_error_that_names_it(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_yaml(AdapterConfig, path)
    assert message in str(error.value) and str(error.value).startswith(str(path))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_yaml(AdapterConfig, tmp_path / "config.yaml")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00rank")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_yaml(AdapterConfig, tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("config", "wrong", "right"),
    [
        (AdapterConfig, "target", "targets"),
        (ConditionConfig, "scoop", "scope"),
        (TrainConfig, "step", "steps"),
        (LearnerConfig, "adaptor", "adapter"),
        (FineTuneConfig, "batchsize", "batch_size"),
        (BenchConfig, "method", "methods"),
    ],
)
def test_a_wrong_keyword_names_the_nearest_field(config, wrong, right):
    message = f"^{config.__name__}: unknown key '{wrong}'; did you mean '{right}'\\? \\(known: "
    with pytest.raises(ValueError, match=message):
        config(**{wrong: 1})
    with pytest.raises(ValueError, match=message):
        replace(config(), **{wrong: 1})
    assert pickle.loads(pickle.dumps(config())) == config() == copy.copy(config())
    assert list(inspect.signature(config).parameters) == [field.name for field in fields(config)]


def test_nearest_names_the_closest_and_all():
    assert nearest("lroa", ["lora", "moe"]) == "; did you mean 'lora'? (known: lora, moe)"
    assert nearest("xyz", ["moe", "lora"]) == " (known: lora, moe)"


IMPORTS = {
    "the configuration": ("import metalora.config", ("torch",)),
    "the package": ("import metalora; metalora.methods()", ("torch", "transformers", "timm", "peft")),
    "the core": ("from metalora import attach, checkpoint, load, Condition", ("transformers", "timm", "peft", "yaml")),
}


@pytest.mark.parametrize("statement, absent", IMPORTS.values(), ids=IMPORTS)
def test_what_an_import_does_not_load(statement, absent):
    code = f"import sys\n{statement}\nprint([m for m in {absent!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
