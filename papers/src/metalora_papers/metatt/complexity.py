"""Table 19 of MetaTT (arXiv:2506.09105): what lowering the ranks by SVD costs LoRA, as a multiple of MetaTT's cost."""

from __future__ import annotations

from metalora.zoo import architectures

MODELS = ("roberta-base", "roberta-large", "llama-2-7b", "llama-2-13b")
RANKS = (16, 64, 256)


def complexity_ratio(layers: int, width: int, rank: int, matrices: int = 2) -> float:
    """Return L M D^3, eq. 8, divided by the three terms of eq. 9; all constants are one.

    The SVDs of LoRA are of every adapted matrix. A sweep of MetaTT-4D is one of three pairs of neighbouring factors,
    there and back.

    Args:
        layers: L.
        width: D, the hidden width.
        rank: r, that of every bond of the train before the sweep.
        matrices: M, adapted matrices of a layer; two in the table (query and value).

    Example:
        >>> round(complexity_ratio(layers=12, width=768, rank=16))
        186
    """
    tall, middle = layers * rank, matrices * rank
    lora = layers * matrices * width**3
    metatt = (
        2 * width * tall * min(width, tall)
        + 2 * tall * middle * min(tall, middle)
        + 2 * width * middle * min(width, middle)
    )
    return lora / metatt


def complexity_table() -> list[dict[str, float]]:
    """Return Table 19: a line for every rank, with the ratio of every model by its name.

    Example:
        >>> list(complexity_table()[0])
        ['rank', 'roberta-base', 'roberta-large', 'llama-2-7b', 'llama-2-13b']
    """
    table = []
    for rank in RANKS:
        line: dict[str, float] = {"rank": rank}
        for model in MODELS:
            sizes = architectures()[model]
            line[model] = complexity_ratio(sizes["num_hidden_layers"], sizes["hidden_size"], rank)
        table.append(line)
    return table
