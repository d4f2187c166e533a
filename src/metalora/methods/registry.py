"""All methods by name."""

from metalora.config import AdapterConfig, nearest
from metalora.methods import (
    adalora,
    cara,
    fact,
    folded,
    lora,
    lorta,
    lotr,
    lycoris,
    metalora,
    metatt,
    moelora,
    multilora,
    multitask,
    tenslora,
    tensorpeft,
    vera,
)
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
        metatt.METATT_4D,
        metatt.METATT_5D,
        metatt.METATT_4P1D,
        metatt.METATT_6D,
        *tenslora.TENSLORA,
        lotr.LOTR,
        fact.FACT_TT,
        fact.FACT_TK,
        lorta.LORTA,
        lorta.LORTA_IN,
        cara.CARA,
        vera.VERA,
        tensorpeft.TENSORPEFT,
        lora.RSLORA,
        adalora.ADALORA,
        lycoris.LOHA,
        lycoris.LOKR,
        lycoris.LOCON_TUCKER,
        folded.TT_LORA,
        folded.LORETTA_REP,
        multitask.MTL_LORA,
        multitask.TASK_LORA,
        multitask.MOE_LORA_SHARED,
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


def method_of(config: AdapterConfig) -> Method:
    """The method of a configuration, its chain or heads in the order that the configuration asks for."""
    method = get_method(config.method)
    order = config.order[0] if isinstance(config.order, tuple) and len(config.order) == 1 else config.order
    if order == "tenslora":
        return method.interleaved()
    if isinstance(order, str) and order != "model":
        raise ValueError(f"order {order!r}{nearest(order, ('model', 'tenslora'))}")
    return method if order in (None, "model") else method.reordered(order)
