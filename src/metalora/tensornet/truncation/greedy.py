"""Ranks by the largest singular values, for a truncation within a budget."""

from collections.abc import Callable, Mapping

from torch import Tensor


def largest_values_first(
    singular_values: Mapping[str, Tensor],
    fits: Callable[[Mapping[str, int]], bool],
    *,
    largest_ranks: Mapping[str, int] | None = None,
    relative: bool = True,
) -> dict[str, int]:
    """Raise ranks from one, the relatively largest next singular value first, as far as there is room.

    Each step offers one value s_b[j] / s_b[0] of a bond b; it is accepted if the ranks with it fit. A value that does
    not fit is skipped, and smaller ones of other bonds may still be accepted.

    Args:
        singular_values: Bond -> its singular values (n,), the largest first.
        fits: Whether there is room for these ranks.
        largest_ranks: Bond -> the largest rank that is offered; all of its values if None.
        relative: False: s_b[j] itself is offered, for values of all bonds in one unit.

    Returns:
        Bond -> rank, at least one.

    Example:
        >>> import torch
        >>> values = {"a": torch.tensor([1.0, 0.9, 0.1]), "b": torch.tensor([1.0, 0.5])}
        >>> largest_values_first(values, lambda ranks: sum(ranks.values()) <= 4)
        {'a': 2, 'b': 2}
    """
    steps: list[tuple[float, str]] = []
    for bond, values in singular_values.items():
        last = len(values) if largest_ranks is None else largest_ranks[bond]
        # a bond of zeros (float64) offers zeros, not NaN
        unit = values[0].clamp_min(1e-300) if relative else values.new_ones(())
        # the first value is not offered: every bond has rank one from the start
        steps += [(float(value / unit), bond) for value in values[1:last]]
    ranks = dict.fromkeys(singular_values, 1)
    # values of one bond descend, so its steps come in their order; of equal values of several bonds, the bond comes
    # first whose name sorts last. A bond that did not fit once does not fit later, since ranks only grow.
    for value, bond in sorted(steps, reverse=True):
        larger = {**ranks, bond: ranks[bond] + 1}
        if value > 0 and fits(larger):
            ranks = larger
    return ranks
