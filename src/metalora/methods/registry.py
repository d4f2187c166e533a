"""All methods by name."""

from metalora.config import nearest
from metalora.methods import lora, metalora, moelora, multilora
from metalora.methods.method import Method

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        lora.LORA,
        lora.CONV_LORA,
        multilora.MULTI_LORA,
        moelora.MOE_LORA,
        metalora.METALORA_CP,
        metalora.METALORA_TR,
        metalora.METALORA_SQUARE,
    )
}


def methods() -> list[str]:
    """The names of all methods."""
    return list(METHODS)


def get_method(name: str) -> Method:
    """The method of that name; ValueError names the nearest one."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
