"""All methods by name."""

from metalora._util.suggest import nearest
from metalora.methods import (
    adalora,
    cara,
    dora,
    fact,
    film,
    lora,
    loretta,
    lorta,
    lotr,
    lycoris,
    metalora,
    metatt,
    miss,
    moelora,
    mtl_lora,
    mtlora,
    multilora,
    olora,
    pissa,
    quanta,
    rslora,
    task_lora,
    tenslora,
    tensorpeft,
    tt_lora,
    vera,
)
from metalora.methods.method import Method

# the law suite and docs/methods.md run over this table, in this order
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
        fact.FACT_TK_CODE,
        lorta.LORTA,
        lorta.LORTA_IN,
        lorta.LORTA_AUTO,
        cara.CARA,
        cara.CARA_ATTENTION,
        vera.VERA,
        tensorpeft.TENSORPEFT,
        rslora.RSLORA,
        pissa.PISSA,
        olora.OLORA,
        dora.DORA,
        miss.MISS,
        adalora.ADALORA,
        lycoris.LOHA,
        lycoris.LOKR,
        lycoris.LOKR_FULL,
        lycoris.LOCON_TUCKER,
        lycoris.LOHA_TUCKER,
        lycoris.LOKR_TUCKER,
        tt_lora.TT_LORA,
        loretta.LORETTA_REP,
        loretta.LORETTA_ADP,
        quanta.QUANTA,
        mtl_lora.MTL_LORA,
        mtlora.MTLORA,
        task_lora.TASK_LORA,
        moelora.MOE_LORA_SHARED,
        moelora.MOE_LORA_TASK,
        film.FILM,
        film.IA3,
    )
}


def methods() -> list[str]:
    """The names of all methods.

    Example:
        >>> "metatt-4d" in methods()
        True
    """
    return list(METHODS)


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is no such method; the message names the nearest one.

    Example:
        >>> get_method("lora").formula
        'ΔW = A B'
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]
