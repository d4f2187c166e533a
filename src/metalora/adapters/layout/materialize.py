"""The factors of a target as its network takes them: changes on their start, products made, gates through a softmax."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_letters

import torch
from torch import Tensor

from metalora.adapters.layout.layout import CompositeFactor, TargetLayout
from metalora.methods.method import Method


def materialize_factors(place: TargetLayout, method: Method, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From what the target reads, by name; a factor that differs by example has a leading axis for it."""
    found = dict(values)
    for start, change in method.starts.items():
        found[change] = found[change] + found[start]
    for name, made in place.made.items():
        found[name] = _product(made, [found.pop(factor) for factor in made.parts])
    return {f: (v / method.temperature).softmax(-1) if f in method.gates else v for f, v in found.items()}


def _product(made: CompositeFactor, parts: list[Tensor]) -> Tensor:
    """The contraction of the parts, (b?, *made.modes), read as (b?, *made.shape)."""
    letters = dict(zip(dict.fromkeys(mode for term in made.terms for mode in term), ascii_letters[1:], strict=False))
    terms = ["".join(letters[mode] for mode in term) for term in made.terms]
    batched = [part.ndim > len(term) for part, term in zip(parts, made.terms, strict=True)]
    out = "".join(letters[mode] for mode in made.modes)
    first = ascii_letters[0]
    sides = ",".join(first * each + term for each, term in zip(batched, terms, strict=True))
    product = torch.einsum(f"{sides}->{first * any(batched)}{out}", *parts)
    return product.reshape(*product.shape[: any(batched)], *made.shape)
