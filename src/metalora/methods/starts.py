"""Starts of LoRA by one word: `AdapterConfig("lora", init="pissa")`; imports no torch."""

from __future__ import annotations

from dataclasses import replace

from metalora.methods.lora import LORA
from metalora.methods.method import FROM_DATA, Method
from metalora.methods.olora import OLORA
from metalora.methods.pissa import PISSA
from metalora.methods.records import StartFromWeight

EVA = replace(LORA, title="EVA", source="arXiv:2410.07170", init={"A": FROM_DATA, "B": "zeros"})

CORDA = replace(
    PISSA,
    title="CorDA",
    source="arXiv:2406.05223",
    formula="ΔW = A B - A_0 B_0,  A_0 B_0 = (C^-1 V)_r S_r U_r^T,  W C = U S V^T, C the covariance of the inputs",
    init={"A": FROM_DATA, "B": FROM_DATA},
    mechanisms=(StartFromWeight("data"),),
    notes="The base keeps its weight: changes of A and B are learned, and saved with their start.",
)

STARTS = {"pissa": PISSA, "olora": OLORA, "eva": EVA, "corda": CORDA}
"""Word -> LoRA with this start."""


def with_start(method: Method, word: str) -> Method:
    """The same method with one of `STARTS`.

    Args:
        method: LoRA, at any scale: lora, rslora or conv-lora.
        word: The start.

    Raises:
        ValueError: The method is not a plain LoRA.

    Example:
        >>> from metalora.methods.registry import get_method
        >>> with_start(get_method("lora"), "eva").init
        {'A': 'from_data', 'B': 'zeros'}
    """
    if (method.factors, method.mechanisms, method.replicated_over) != (LORA.factors, (), LORA.replicated_over):
        raise ValueError(f"method {method.name!r}: init {word!r} is a start of lora, rslora and conv-lora alone")
    start = STARTS[word]
    return replace(
        method,
        init=start.init,
        mechanisms=start.mechanisms,
        formula=start.formula,
        export=start.export,
        notes=start.notes,
    )
