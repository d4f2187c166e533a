"""adapter_config.json of a LoRA: what changes Delta W is read or refused, the rest is known to change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metalora._util.number_range import Range
from metalora._util.reading import read_json
from metalora._util.shown import shown
from metalora.io.lora.peft_patterns import by_path

CONFIG = "adapter_config.json"
Start = Literal["", "pissa", "olora"]
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""Initial values that leave the base as it is."""
STARTS: tuple[Start, ...] = ("pissa", "olora")
"""Those that subtract a part of the base's weight that the base alone decides, so that it can be found again."""
CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task type -> the class of transformers that loads the base of such a task."""
SWITCHES = ("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "use_qalora", "inference_mode")
MUST_BE_OFF = {
    "lora_bias": "it has trained biases, which no factor can hold",
    "use_qalora": "QALoRA pools the inputs in groups, which a plain LoRA does not",
    "layer_replication": "its base repeats layers, which this base does not",
    "trainable_token_indices": "it replaces single tokens of an embedding",
    "alora_invocation_tokens": "an aLoRA is only active behind some tokens",
    "ensure_weight_tying": "it also adapts the weights that are tied to a target",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "an arrow chooses between adapters for every token",
    "kasa_config": "KaSA also has singular values",
    "monteclora_config": "MonteCLoRA also has sampled factors",
    "velora_config": "VeLoRA is another method",
}
"""Entry that must be absent or off -> what it means."""
ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""Types of PEFT's adapters that are read -> what they call alpha."""
OF_LYCORIS = (
    "alpha", "rank_dropout", "rank_dropout_scale", "module_dropout", "use_effective_conv2d", "decompose_both",
    "decompose_factor", "init_weights",
)  # fmt: skip
"""Entries of LoHa and LoKr alone; those that are not read say how it was trained, or what the shapes tell."""
READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "target_parameters",
)
"""Entries that are read here."""
CHANGE_NOTHING = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "modules_to_save", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Entries that say how the LoRA was trained, where, or at which modules: the tensors tell the modules."""


class RankAndScale(NamedTuple):
    """The rank of a target by a configuration, and the number that multiplies its B A."""

    rank: int
    scale: float


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a LoRA folder.

    Args:
        folder: A folder that PEFT wrote.

    Raises:
        ValueError: It is missing or damaged, a value is of another type, or an entry that this library does not know,
            or does not follow, changes what the LoRA computes.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_bias": true}')
        >>> read_config(folder)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...adapter_config.json: lora_bias is True: it has trained biases, which no factor can hold
    """
    place = folder / CONFIG
    config = read_json(place, f"{folder}: no {CONFIG}, expected the folder of a PEFT LoRA")
    peft_type = config.get("peft_type") if isinstance(config, dict) else config
    if not isinstance(config, dict) or peft_type not in ALPHAS:
        raise ValueError(f"{folder}: peft_type is {shown(peft_type)}, expected 'LORA', 'LOHA' or 'LOKR'")
    check_config(config, place)
    return config


def check_config(config: Mapping[str, Any], place: str | Path) -> None:
    """Raise a ValueError unless all entries of a configuration are followed here, or change nothing.

    Example:
        >>> check_config({"r": 2, "lora_alpha": 4, "use_tomorrow": True}, "FILE")
        Traceback (most recent call last):
        ValueError: FILE: use_tomorrow is True: this version does not know what that changes
    """
    _check_plain_lora(config, place)
    _check_numbers(config, place)
    known = {*READ, *CHANGE_NOTHING, *SWITCHES, *MUST_BE_OFF, *(() if _is_lora(config) else OF_LYCORIS)}
    for key in sorted(config.keys() - known):
        if config[key] not in (None, False, "", [], {}) and config[key] != _default_in_peft(config, key):
            raise ValueError(f"{place}: {key} is {shown(config[key])}: this version does not know what that changes")


def base_class_of(folder: str | Path) -> str | None:
    """Return the name of the class of transformers that a LoRA was trained on, if its folder says it.

    Args:
        folder: A folder of PEFT, or its file of tensors; any other path says nothing.

    Returns:
        The class of transformers that PEFT's `auto_mapping` names, or the automatic class of its `task_type`.

    Raises:
        ValueError: adapter_config.json is not JSON.

    Example:
        >>> base_class_of("no-such-folder") is None
        True
    """
    path = Path(folder)
    place = path.with_name(CONFIG) if path.name.startswith("adapter_model.") else path / CONFIG
    config = read_json(place, str(place)) if place.is_file() else None
    if not isinstance(config, dict):
        return None
    mapping, task = config.get("auto_mapping"), config.get("task_type")
    # A class of another package, such as one that a user wrote around a model, is not one to load.
    if isinstance(mapping, dict) and str(mapping.get("parent_library")).startswith("transformers."):
        return str(mapping.get("base_model_class"))
    return CLASSES.get(task) if isinstance(task, str) else None


def start_of(config: Mapping[str, Any]) -> Start:
    """Return what the base has lost to the LoRA's initial values: "pissa", "olora", or "" for nothing.

    Example:
        >>> start_of({"init_lora_weights": "OLoRA"}), start_of({"init_lora_weights": True})
        ('olora', '')
    """
    init = str(config.get("init_lora_weights")).lower()
    return next((start for start in STARTS if start == init), "")


def scales_of(config: Mapping[str, Any], paths: Sequence[str], place: str | Path) -> dict[str, RankAndScale]:
    """Return the rank and the scale of each target by a configuration: alpha / r, of rsLoRA alpha / sqrt(r).

    Args:
        config: The entries of the configuration.
        paths: Paths of the targets.
        place: The file, for error messages.

    Raises:
        ValueError: A pattern is not a regular expression, or could take too long to match.

    Example:
        >>> scales_of({"r": 4, "lora_alpha": 8, "rank_pattern": {"value": 2}}, ["0.query", "0.value"], "FILE")
        {'0.query': RankAndScale(rank=4, scale=2.0), '0.value': RankAndScale(rank=2, scale=4.0)}
    """
    ranks = by_path(config.get("rank_pattern"), paths, f"{place}: rank_pattern")
    alphas = by_path(config.get("alpha_pattern"), paths, f"{place}: alpha_pattern")
    scales = {}
    for path in paths:
        rank, alpha = ranks.get(path, config["r"]), alphas.get(path, config[ALPHAS[config.get("peft_type", "LORA")]])
        scales[path] = RankAndScale(rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank))
    return scales


def _is_lora(config: Mapping[str, Any]) -> bool:
    return bool(config.get("peft_type", "LORA") == "LORA")


def _default_in_peft(config: Mapping[str, Any], key: str) -> Any:
    """Return the default of a field of a configuration in the installed version of PEFT; None if there is none.

    A later version writes fields that this module does not know, mostly with their defaults.
    """
    try:
        # By its name, since the library works without PEFT and imports it for this question alone.
        peft = import_module("peft")
        classes = {"LORA": peft.LoraConfig, "LOHA": peft.LoHaConfig, "LOKR": peft.LoKrConfig}
        fields = dataclasses.fields(classes[config.get("peft_type", "LORA")])
    except ImportError:
        return None
    return next((field.default for field in fields if field.name == key), None)


def _check_plain_lora(config: Mapping[str, Any], place: str | Path) -> None:
    """Raise a ValueError for a variant of LoRA that is not read."""
    for key in SWITCHES:
        if not isinstance(config.get(key), bool | None):
            raise ValueError(f"{place}: {key} is {shown(config[key])}, expected true or false")
    for key, meaning in MUST_BE_OFF.items():
        if config.get(key):
            raise ValueError(f"{place}: {key} is {shown(config[key])}: {meaning}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{place}: it has trained biases (bias={shown(config['bias'])}), which no factor can hold")
    init = config.get("init_lora_weights")
    if not isinstance(init, bool | str | None):
        raise ValueError(f"{place}: init_lora_weights is {shown(init)}, expected true, false or a name")
    if isinstance(init, str) and init.lower() not in (*PLAIN_INITS, *STARTS):
        raise ValueError(
            f"{place}: init_lora_weights={shown(init)} changed the base's weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def _check_numbers(config: Mapping[str, Any], place: str | Path) -> None:
    """Raise a ValueError unless the rank and alpha, and those of single targets, are numbers."""
    alpha = ALPHAS[config.get("peft_type", "LORA")]
    for key, number, kinds in (("r", "an integer", int), (alpha, "a number", (int, float))):
        _check_number(config.get(key), kinds, number, f"{place}: {key}")
    for key, number, kinds in (("rank_pattern", "an integer", int), ("alpha_pattern", "a number", (int, float))):
        patterns = config.get(key)
        if not isinstance(patterns, dict | None):
            raise ValueError(f"{place}: {key} is {shown(patterns)}, expected a mapping of patterns to numbers")
        for pattern, value in (patterns or {}).items():
            _check_number(value, kinds, number, f"{place}: {key} of {shown(pattern)}")


def _check_number(value: Any, kinds: Any, expected: str, place: str) -> None:
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{place} is {shown(value)}, expected {expected}")
    Range(above=0, most=1e12).check(value, place)
