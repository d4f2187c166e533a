"""Starts of LoRA by one word: `AdapterConfig("lora", init="pissa")`; imports no torch."""

from __future__ import annotations

from dataclasses import replace

from metalora.methods.lora import LORA
from metalora.methods.method import FROM_DATA, Method
from metalora.methods.olora import OLORA
from metalora.methods.pissa import PISSA

EVA = replace(LORA, title="EVA", source="arXiv:2410.07170", init={"A": FROM_DATA, "B": "zeros"})

STARTS = {"pissa": PISSA, "olora": OLORA, "eva": EVA}
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
