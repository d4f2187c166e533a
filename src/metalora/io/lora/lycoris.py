"""The tensors of one module as LyCORIS lays them out (arXiv:2309.14859): LoRA and LoCon, LoHa, LoKr."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metalora.fitting.updates import LowRankUpdate

LOCON = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
DORA = "dora_scale"  # LyCORIS's magnitude
MAGNITUDE = "lora_magnitude_vector"  # PEFT's
SUFFIXES = (*LOCON, *LOHA, *LOKR, "alpha", DORA)


def update_of(group: Mapping[str, Tensor], kernel: tuple[int, ...] = ()) -> LowRankUpdate:
    """Return the update of a module with its scale in `up`.

    Args:
        group: Suffix -> tensor, such as lora_down.weight, hada_w1_a or alpha; a magnitude does not count.
        kernel: The size of the kernel if the module is a convolution; LoHa and LoKr store it flattened.

    Returns:
        down (rank, in, *kernel) and up (out, rank).

    Raises:
        ValueError: The tensors are not those of one algorithm, or do not fit together.

    Example:
        >>> group = {"hada_w1_a": torch.ones(4, 2), "hada_w1_b": torch.ones(2, 6)}
        >>> group |= {"hada_w2_a": torch.ones(4, 2), "hada_w2_b": torch.ones(2, 6), "alpha": torch.tensor(1.0)}
        >>> update = update_of(group)
        >>> (update.up @ update.down)[0, 0].item()  # alpha / rank times 2 times 2
        2.0
    """
    group = {name: value for name, value in group.items() if name not in (DORA, MAGNITUDE)}
    if group.keys() & set(LOHA):
        return _loha(_only(group, LOHA, required=LOHA[:4]), group.get("alpha"), kernel)
    if group.keys() & set(LOKR):
        return _lokr(_only(group, LOKR, required=()), group.get("alpha"), kernel)
    return _locon(group)


def magnitude_of(group: Mapping[str, Tensor], outputs: int) -> Tensor | None:
    """Return the magnitudes of the outputs of a DoRA, (out,), or None if the tensors of a module hold none.

    Args:
        group: Suffix -> tensor.
        outputs: The number of outputs.

    Raises:
        ValueError: It has another number of values, or they belong to the inputs, as in early versions of LyCORIS.

    Example:
        >>> magnitude_of({"dora_scale": torch.ones(4, 1)}, outputs=4).shape
        torch.Size([4])
    """
    for name in (DORA, MAGNITUDE):
        if name in group:
            shape = tuple(group[name].shape)
            # LyCORIS has the outputs first; PEFT's magnitude of a convolution is multiplied with its outputs.
            fits = shape[:1] == (outputs,) or (name == MAGNITUDE and shape[:2] == (1, outputs))
            if not fits or group[name].numel() != outputs:
                raise ValueError(f"has {name} of shape {shape}, expected one magnitude for each of {outputs} outputs")
            return group[name].flatten()
    return None


def _only(group: Mapping[str, Tensor], names: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors of one algorithm; ValueError if one is missing, or if there are others."""
    for name in group:
        if name not in (*names, "alpha"):
            raise ValueError(
                f"has {name} next to {next(iter(group.keys() & set(names)))}, which is of another algorithm"
            )
    for name in required:
        if name not in group:
            raise ValueError(f"has no {name}")
    _check_axes(group)
    return {name: value for name, value in group.items() if name != "alpha"}


def _check_axes(group: Mapping[str, Tensor]) -> None:
    """Raise a ValueError for a tensor, other than alpha, without rows and columns."""
    for name, value in group.items():
        if name != "alpha" and (value.ndim < 2 or value.numel() == 0):
            raise ValueError(f"has {name} of shape {tuple(value.shape)}, expected rows and columns")


def _scale(alpha: Tensor | None, rank: int) -> float:
    if alpha is not None and alpha.numel() != 1:
        raise ValueError(f"has an alpha of shape {tuple(alpha.shape)}, expected one number")
    return 1.0 if alpha is None else float(alpha) / rank  # LyCORIS: without alpha, alpha is the rank


def _locon(group: Mapping[str, Tensor]) -> LowRankUpdate:
    down, up, mid = (group.get(name) for name in LOCON)
    if down is None or up is None:
        raise ValueError(f"has lora_{'up' if down is None else 'down'} alone, expected both")
    _check_axes(group)
    rank = up.shape[1]
    if mid is not None:  # core (rank, rank, kh, kw) and down (rank, in, 1, 1) -> (rank, in, kh, kw)
        down = torch.einsum("ab...,bi->ai...", mid, down.flatten(1))
    if len(down) != rank or up[0, 0].numel() != 1:
        raise ValueError(f"has lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)}")
    return LowRankUpdate(down, up.flatten(1) * _scale(group.get("alpha"), rank))


def _loha(group: Mapping[str, Tensor], alpha: Tensor | None, kernel: tuple[int, ...]) -> LowRankUpdate:
    """(up1 down1) * (up2 down2), entry by entry: the row-wise products of the downs and of the ups."""
    sides = []
    for number in (1, 2):
        up, down, core = (group.get(f"hada_{name}") for name in (f"w{number}_a", f"w{number}_b", f"t{number}"))
        assert up is not None and down is not None
        if core is not None:  # with a core, up is stored as (rank, out)
            up, down = up.mT, torch.einsum("ab...,bi->ai...", core, down).reshape(len(core), -1)
        if up.shape[1] != len(down):
            raise ValueError(f"has hada_w{number}_a {tuple(up.shape)} and hada_w{number}_b {tuple(down.shape)}")
        sides.append((up, down))
    (up1, down1), (up2, down2) = sides
    if len(up1) != len(up2) or down1.shape[1] != down2.shape[1]:
        raise ValueError(f"has factors of {len(up1)} x {down1.shape[1]} and {len(up2)} x {down2.shape[1]}")
    if len(down1) * len(down2) > min(len(up1), down1.shape[1]):  # then the weight itself is the smaller form
        up, down = _by_smaller_side((up1 @ down1) * (up2 @ down2))
        return LowRankUpdate(_with_kernel(down, kernel), up * _scale(alpha, len(down1)))
    down = (down1[:, None] * down2).flatten(0, 1)  # (rank1 * rank2, in * kernel)
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)  # (out, rank1 * rank2)
    return LowRankUpdate(_with_kernel(down, kernel), up * _scale(alpha, len(down1)))


def _lokr(group: Mapping[str, Tensor], alpha: Tensor | None, kernel: tuple[int, ...]) -> LowRankUpdate:
    """(up1 down1) x (up2 down2), Kronecker: the Kronecker products of the ups and of the downs."""
    ranks = [group[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in group]
    up1, down1 = _kronecker_factor(group, 1)
    up2, down2 = _kronecker_factor(group, 2)
    down2 = _with_kernel(down2, kernel)  # (rank2, i2, *kernel)
    down = torch.einsum("ai,bj...->abij...", down1, down2).flatten(2, 3).flatten(0, 1)
    scale = _scale(alpha, ranks[-1]) if ranks else 1.0  # two full factors have no rank, and no scale
    up = torch.einsum("oa,pb->opab", up1, up2).flatten(2, 3).flatten(0, 1)
    return LowRankUpdate(down, up * scale)


def _kronecker_factor(group: Mapping[str, Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Return the factor `number` as up (o, rank) and down (rank, i * kernel); a full one by its smaller side."""
    full, up, down = (group.get(f"lokr_w{number}{part}") for part in ("", "_a", "_b"))
    core = group.get("lokr_t2") if number == 2 else None
    if full is not None:
        return _by_smaller_side(full.reshape(len(full), -1))
    if up is None or down is None:
        raise ValueError(f"has neither lokr_w{number} nor both lokr_w{number}_a and lokr_w{number}_b")
    if core is not None:  # with a core, up is stored as (rank, o)
        up, down = up.mT, torch.einsum("ab...,bi->ai...", core, down).reshape(len(core), -1)
    if up.shape[1] != len(down):
        raise ValueError(f"has lokr_w{number}_a {tuple(up.shape)} and lokr_w{number}_b {tuple(down.shape)}")
    down = down.flatten(1)
    return _by_smaller_side(up @ down) if len(down) > min(len(up), down.shape[1]) else (up, down)


def _by_smaller_side(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix as up and down, one of which is an identity."""
    identity = torch.eye(min(matrix.shape), dtype=matrix.dtype, device=matrix.device)
    return (identity, matrix) if len(matrix) == len(identity) else (matrix, identity)


def _with_kernel(down: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """(rank, in * kernel) -> (rank, in, *kernel)."""
    positions = torch.Size(kernel).numel()
    if down.shape[1] % positions:
        raise ValueError(f"has {down.shape[1]} columns, which a kernel of {kernel} does not divide")
    return down.reshape(len(down), -1, *kernel)


# ---- writing --------------------------------------------------------------------------------------------------------
def locon_tensors(update: LowRankUpdate) -> dict[str, Tensor]:
    """Return an update as lora_down and lora_up; alpha is the rank, so that the scale is one.

    Example:
        >>> tensors = locon_tensors(LowRankUpdate(down=torch.ones(2, 6, 3, 3), up=torch.ones(4, 2)))
        >>> tuple(tensors["lora_up.weight"].shape), tensors["alpha"].item()
        ((4, 2, 1, 1), 2.0)
    """
    up = update.up.reshape(*update.up.shape, *[1] * (update.down.ndim - 2))
    return {"lora_down.weight": update.down, "lora_up.weight": up, "alpha": torch.tensor(float(len(update.down)))}


def loha_tensors(factors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the factors A1, B1, A2, B2 (and the cores M1, M2) of LoHa; the scale is multiplied into the first.

    Args:
        factors: Name of a factor -> its value, as the methods loha and loha-tucker declare them.
        scale: The scale of the target.

    Raises:
        ValueError: The two products have unequal ranks, and LyCORIS has one.

    Example:
        >>> pair = {"A": torch.ones(6, 2), "B": torch.ones(2, 4)}
        >>> factors = {f"{name}{number}": value for number in (1, 2) for name, value in pair.items()}
        >>> sorted(loha_tensors(factors, scale=1.0))
        ['alpha', 'hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b']
    """
    tensors = {}
    ranks = set()
    for number in (1, 2):
        left, right, core = factors[f"A{number}"], factors[f"B{number}"], factors.get(f"M{number}")
        right = right * scale if number == 1 else right
        # with a core, LyCORIS stores the output's factor as (rank, out)
        tensors[f"hada_w{number}_a"] = right.mT if core is None else right
        tensors[f"hada_w{number}_b"] = _rows_first(left).flatten(1)
        ranks |= {left.shape[-1], right.shape[0]}
        if core is not None:
            tensors[f"hada_t{number}"] = _rows_first(core)
    if len(ranks) > 1:
        raise ValueError(f"its bonds have ranks {sorted(ranks)}, and LyCORIS's LoHa has one rank")
    return {**tensors, "alpha": torch.tensor(float(ranks.pop()))}


def lokr_tensors(factors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return the factors C and A, B (or a core M between them, or D) of LoKr; the scale is multiplied into the first.

    The second factor is written in full if it has a core or a rank of at least half its longer side: LyCORIS's loader
    expects that.

    Args:
        factors: Name of a factor -> its value, as the methods lokr, lokr-tucker and lokr-full declare them.
        scale: The scale of the target.

    Example:
        >>> factors = {"C": torch.ones(2, 3), "A": torch.ones(8, 1), "B": torch.ones(1, 5)}
        >>> {name: tuple(value.shape) for name, value in lokr_tensors(factors, scale=0.5).items()}
        {'lokr_w1': (3, 2), 'lokr_w2_a': (5, 1), 'lokr_w2_b': (1, 8), 'alpha': ()}
    """
    tensors = {"lokr_w1": factors["C"].mT * scale}  # (o1, i1)
    if "D" in factors:
        return {**tensors, "lokr_w2": _rows_first(factors["D"]), "alpha": torch.tensor(1.0)}
    down, up = _rows_first(factors["A"]), factors["B"].mT  # (rank, i2, *kernel) and (o2, rank)
    if "M" in factors:
        down = torch.einsum("ab...,bi->ai...", _rows_first(factors["M"]), down)
    rank, longer_side = len(down), max(len(up), down.shape[1])
    if "M" in factors or 2 * rank >= longer_side:
        full = torch.tensordot(up, down, 1)  # (o2, i2, *kernel)
        return {**tensors, "lokr_w2": full, "alpha": torch.tensor(1.0)}
    return {**tensors, "lokr_w2_a": up, "lokr_w2_b": down.flatten(1), "alpha": torch.tensor(float(rank))}


def _rows_first(factor: Tensor) -> Tensor:
    """(*kernel, in, out) -> (out, in, *kernel)."""
    return factor.movedim((-1, -2), (0, 1))
