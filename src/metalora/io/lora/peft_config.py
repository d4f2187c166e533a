"""adapter_config.json of a LoRA: what changes Delta W is read or refused, the rest is known to change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metalora._util.number_range import Range
from metalora._util.reading import read_json
from metalora._util.shown import shown
from metalora._util.user_warning import warn_user

CONFIG = "adapter_config.json"
INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
SWITCHES = ("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "use_qalora", "inference_mode")
MUST_BE_OFF = {
    "lora_bias": "it has trained biases, which no factor can hold",
    "use_dora": "DoRA also rescales the columns of the weight, which is not a low-rank update",
    "use_qalora": "QALoRA pools the inputs in groups, which a plain LoRA does not",
    "layer_replication": "its base repeats layers, which this base does not",
    "trainable_token_indices": "it replaces single tokens of an embedding",
    "alora_invocation_tokens": "an aLoRA is only active behind some tokens",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "an arrow chooses between adapters for every token",
    "kasa_config": "KaSA also has singular values",
    "monteclora_config": "MonteCLoRA also has sampled factors",
    "velora_config": "VeLoRA is another method",
}
"""Entry that must be absent or off -> what it means."""
CHANGE_NOTHING = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "target_parameters", "task_type",
})  # fmt: skip
"""Entries that are read here, and those that say how the LoRA was trained or where: the tensors tell the rest."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a LoRA folder.

    Args:
        folder: A folder that PEFT wrote.

    Raises:
        ValueError: It is missing or damaged, a value is of another type, or the LoRA is not a plain one.

    Warns:
        UserWarning: It has entries that are not known, such as those of a later PEFT; they are ignored, as PEFT does.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": true}')
        >>> read_config(folder)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...adapter_config.json: use_dora is True: DoRA also rescales the columns of the weight, ...
    """
    place = folder / CONFIG
    config = read_json(place, f"{folder}: no {CONFIG}, expected the folder of a PEFT LoRA")
    peft_type = config.get("peft_type") if isinstance(config, dict) else config
    if not isinstance(config, dict) or peft_type != "LORA":
        raise ValueError(f"{folder}: peft_type is {shown(peft_type)}, expected 'LORA'")
    _check_plain_lora(config, place)
    _check_numbers(config, place)
    _warn_of_unknown(config, place)
    return config


def _check_plain_lora(config: Mapping[str, Any], place: Path) -> None:
    """Raise a ValueError for a variant of LoRA that is more than Delta W = B A."""
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
    if isinstance(init, str) and init.lower().startswith(INITS_THAT_CHANGE_THE_BASE):
        raise ValueError(
            f"{place}: init_lora_weights={shown(init)} changed the base's weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def _check_numbers(config: Mapping[str, Any], place: Path) -> None:
    """Raise a ValueError unless the rank and alpha, and those of single targets, are numbers."""
    for key, number, kinds in (("r", "an integer", int), ("lora_alpha", "a number", (int, float))):
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


def _warn_of_unknown(config: Mapping[str, Any], place: Path) -> None:
    known = {*CHANGE_NOTHING, *SWITCHES, *MUST_BE_OFF}
    unknown: Sequence[str] = sorted(key for key, value in config.items() if key not in known and value)
    if unknown:
        warn_user(f"{place}: {len(unknown)} unknown entries are ignored, as PEFT ignores them: {shown(unknown[0])}")
