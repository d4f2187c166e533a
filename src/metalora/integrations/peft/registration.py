"""This library's type in PEFT, whose enumeration of types is closed and gets one more member here."""

from typing import Any

from peft.utils import PeftType, register_peft_method

NAME = "METALORA"
"""The value of `peft_type` in adapter_config.json."""
PREFIX = "metalora_"
"""The prefix by which PEFT recognises this tuner's parameters."""


def _add_enumeration_member(enumeration: Any, name: str) -> None:
    """Add a member to an enumeration of strings; Python's own interface offers only new enumerations."""
    # These are the steps of `EnumType.__new__` for one member of an enumeration that is also a string.
    member = str.__new__(enumeration, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(enumeration)
    member.__objclass__ = enumeration
    type.__setattr__(enumeration, name, member)
    enumeration._member_names_.append(name)
    enumeration._member_map_[name] = enumeration._value2member_map_[name] = member


if NAME not in PeftType.__members__:
    _add_enumeration_member(PeftType, NAME)


def register(config_class: type, model_class: type) -> None:
    """Make PEFT know the type's configuration and tuner; a second call does nothing.

    Args:
        config_class: The configuration, which PEFT reads from adapter_config.json.
        model_class: The tuner.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if PeftType(NAME) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_class, model_cls=model_class, prefix=PREFIX)
