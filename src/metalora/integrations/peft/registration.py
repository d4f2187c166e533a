"""A PEFT type for this library. PEFT's enumeration of types is closed, so it is given one more member."""

from peft.utils import PeftType, register_peft_method

NAME = "METALORA"
PREFIX = "metalora_"

if NAME not in PeftType.__members__:
    _member = str.__new__(PeftType, NAME)
    _member._name_, _member._value_, _member._sort_order_ = NAME, NAME, len(PeftType)
    _member.__objclass__ = PeftType
    type.__setattr__(PeftType, NAME, _member)
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = PeftType._value2member_map_[NAME] = _member


def register(config_cls: type, model_cls: type) -> None:
    """Make PEFT know the type's configuration and tuner; nothing if it does already."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if PeftType(NAME) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
