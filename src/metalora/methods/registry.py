"""All methods by name."""

from metalora._util.suggest import nearest
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
    miss,
    moelora,
    multilora,
    multitask,
    quanta,
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
        fact.FACT_TK_CODE,
        lorta.LORTA,
        lorta.LORTA_IN,
        lorta.LORTA_AUTO,
        cara.CARA,
        cara.CARA_ATTENTION,
        vera.VERA,
        tensorpeft.TENSORPEFT,
        lora.RSLORA,
        miss.MISS,
        adalora.ADALORA,
        lycoris.LOHA,
        lycoris.LOKR,
        lycoris.LOKR_FULL,
        lycoris.LOCON_TUCKER,
        lycoris.LOHA_TUCKER,
        lycoris.LOKR_TUCKER,
        folded.TT_LORA,
        folded.LORETTA_REP,
        folded.LORETTA_ADP,
        quanta.QUANTA,
        multitask.MTL_LORA,
        multitask.MTLORA,
        multitask.TASK_LORA,
        multitask.MOE_LORA_SHARED,
        multitask.MOE_LORA_TASK,
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


INTRODUCTION = """# Methods

Written by `metalora methods --markdown > docs/methods.md`; do not edit.

- count: learned numbers of one network, in I (in), O (out), K (kernel size), R (rank), N (experts), L (layers),
  M (projections), H (heads), J (head size), T (tasks), and i1, o1, ... (digits of in and out)
- export rank: of the exact LoRA pair at a target; none: an activation between two maps, so there is no ΔW
- one for each: what has factors of its own; said factor by factor where they differ
- published counts, reproduced or not: `tests/golden/counts.json`
"""


def markdown() -> str:
    """The table of all methods, as docs/methods.md holds it."""
    columns = ("method", "formula", "count", "export rank", "one for each", "scale", "source")
    lines = [INTRODUCTION, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for m in METHODS.values():
        cells = (f"`{m.name}`", f"`{m.formula}`", f"`{m.count}`", f"`{m.export}`", _copies(m), m.scale, m.source)
        lines.append(f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |")
    notes = [f"- `{m.name}`: {m.notes}" for m in METHODS.values() if m.notes]
    return "\n".join([*lines, "", *notes]) + "\n"


def _copies(method: Method) -> str:
    def said(copies: str) -> str:
        return " and ".join(copies.split()) or "model"

    if isinstance(method.replicated_over, str):
        return said(method.replicated_over)
    return ", ".join(f"{factor}: {said(copies)}" for factor, copies in method.replicated_over.items())
