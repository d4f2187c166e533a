"""What an adapter costs, computed from sizes alone, before it is attached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod

from torch import nn

from metalora.adapters.layout import Layout, TargetLayout, build_layout
from metalora.adapters.plan import plan_form
from metalora.adapters.skipped import SkippedWeight
from metalora.adapters.targets import Target
from metalora.adapters.trained_biases import bias_shapes
from metalora.adapters.usable_targets import usable_targets
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.records import AnyRank, SplitRank
from metalora.methods.resolve import resolve
from metalora.tensornet.spec import INPUT_MODES

ADAM_BYTES = 16  # of one trained float32 number: the number, its gradient and Adam's two moments
# The JSON header of an adapter file, estimated: bytes per learned factor, per target, and for the rest.
HEADER_PER_FACTOR, HEADER_PER_TARGET, HEADER_REST = 90, 130, 1500


@dataclass(frozen=True)
class CostSummary:
    """What an adapter costs on a model. Mapping nets (which generate factors) are not counted.

    Attributes:
        method: Name of the method.
        formula: Formula of Delta W.
        ranks: Size of each bond that is a rank; the largest over all targets.
        targets: Number of adapted weights.
        factors: Shape of each factor that all targets share, such as "8 768", followed by "frozen" if it is not
            learned.
        parameters: Learned numbers.
        base_parameters: Numbers of the model itself.
        bytes: Size of the adapter file in float32, estimated.
        training_bytes: Parameters, gradients and Adam's two moments in float32.
        multiply_adds: Multiply-adds that the adapter adds at one token, or at one position of an image.
        base_multiply_adds: Multiply-adds of the adapted weights themselves at one token or position.
        overhead: `multiply_adds` / `base_multiply_adds`.
        skipped: What the preset of the targets leaves out, and why.
    """

    method: str
    formula: str
    ranks: dict[str, int]
    targets: int
    factors: dict[str, str]
    parameters: int
    base_parameters: int
    bytes: int
    training_bytes: int
    multiply_adds: int
    base_multiply_adds: int
    overhead: float
    skipped: tuple[SkippedWeight, ...]


@dataclass(frozen=True)
class TargetDescription:
    """One adapted weight and the planned contraction there, Delta W = Left . Mid . Right.

    Attributes:
        target: Path of the layer, such as "layer1.0.conv1".
        shape: Its modes and their sizes, such as "in=64 out=64 kh=3 kw=3".
        left: Factors that are contracted into Left, which reads the input.
        mid: Factors of Mid.
        right: Factors of Right, which writes the output.
        k: Width between Left and Mid: the rank of a plain LoRA with the same Delta W.
        parameters: Learned numbers that this target reads; shared factors count at every target.
    """

    target: str
    shape: str
    left: str
    mid: str
    right: str
    k: int
    parameters: int


@dataclass(frozen=True)
class AdapterDescription:
    """An adapter, target by target. Mapping nets (which generate factors) are not counted.

    Attributes:
        method: Name of the method.
        formula: Formula of Delta W.
        targets: One description per adapted weight.
        parameters: Learned numbers; a shared factor counts once.
        bytes: Size of the adapter file in float32, estimated.
        skipped: What the preset of the targets leaves out, and why.
    """

    method: str
    formula: str
    targets: list[TargetDescription]
    parameters: int
    bytes: int
    skipped: tuple[SkippedWeight, ...]


def match_parameters(
    model: nn.Module, config: AdapterConfig, parameters: int, *, at_least: bool = False
) -> AdapterConfig:
    """Choose the rank for a budget of learned numbers (the isoparameter protocol).

    All bonds get one rank, lowered if a mode is smaller (`clip_rank`), except for a method with a single bond that
    may exceed every mode (VeRA). If experts divide the rank, the rank is a multiple of the number of experts.

    Args:
        model: The model; its weights may be on the "meta" device.
        config: Method, targets and all other settings; its rank is ignored.
        parameters: The budget.
        at_least: Choose the smallest rank with at least `parameters` numbers. By default the choice is the largest
            rank with at most `parameters` numbers.

    Returns:
        The configuration with its new rank.

    Raises:
        ValueError: No rank meets the budget.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> match_parameters(model, AdapterConfig("lora", targets="0"), 70).rank
        4
        >>> match_parameters(model, AdapterConfig("lora", targets="0"), 70, at_least=True).rank
        5
    """
    method = resolve(config).method
    targets, _ = usable_targets(model, config)
    step = config.experts if method.has(SplitRank) else 1  # rank = step * multiple
    # a single bond that may exceed every mode is the method's only size, and clipping it would end the search early
    clip_rank = not (method.has(AnyRank) and len(method.rank_bonds) == 1)

    def at_multiple(multiple: int) -> AdapterConfig:
        return replace(config, rank=step * multiple, clip_rank=clip_rank)

    @cache  # bracketing and bisection ask for the same multiples
    def count(multiple: int) -> int:
        return build_layout(targets, resolve(at_multiple(multiple))).num_params()

    subject = f"match_params {parameters}: {method.name!r}"
    if at_least:
        return at_multiple(_smallest_with_at_least(count, parameters, subject))
    if count(1) > parameters:
        raise ValueError(f"{subject} has {count(1)} numbers at rank {step}, the smallest")
    return at_multiple(_largest_with_at_most(count, parameters, subject))


def _smallest_with_at_least(count: Callable[[int], int], budget: int, subject: str) -> int:
    multiple = _first_that_reaches(count, budget)
    if multiple is None:
        raise ValueError(f"{subject} cannot reach {budget} parameters on these targets, at any rank")
    return multiple


def _largest_with_at_most(count: Callable[[int], int], budget: int, subject: str) -> int:
    """The largest multiple whose count is within the budget.

    If the count stops growing exactly at the budget, this is the smallest multiple that has it.
    """
    first_above = _first_that_reaches(count, budget + 1)
    if first_above is not None:
        return first_above - 1  # the count never falls, so the one before is within the budget
    first_equal = _first_that_reaches(count, budget)
    if first_equal is None:
        raise ValueError(f"{subject} has {_limit(count)} numbers at most, at any rank")
    return first_equal


def _first_that_reaches(count: Callable[[int], int], wanted: int) -> int | None:
    """The smallest argument at which a count that never falls is at least `wanted`; None if it stops growing below."""
    # Doubling brackets the argument, bisection finds it. Two equal counts mean that ranks are clipped everywhere.
    if count(1) >= wanted:
        return 1
    high = 2
    while count(high) < wanted:
        if count(high) == count(2 * high):
            return None
        high *= 2
    low = high // 2  # below `wanted`, as every count before it
    # invariant: count(low) < wanted <= count(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if count(middle) >= wanted else (middle, high)
    return high


def _limit(count: Callable[[int], int]) -> int:
    """The value at which a count stops growing."""
    high = 2
    while count(high) != count(2 * high):
        high *= 2
    return count(high)


def summarise(model: nn.Module, config: AdapterConfig) -> CostSummary:
    """Compute what an adapter costs, from sizes alone: numbers, file, compute and memory.

    Compute is k (in + out) multiply-adds per target at one token or position, next to in x out of the base.

    Args:
        model: The model; its weights may be on the "meta" device.
        config: The adapter.

    Raises:
        ValueError: The adapter does not fit the model, as in `metalora.attach`.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig
        >>> summarise(nn.Sequential(nn.Linear(8, 8)), AdapterConfig("lora", 2, targets="0")).parameters
        32
    """
    resolved = resolve(config)
    method = resolved.method
    targets, skipped = usable_targets(model, config)
    layout = build_layout(targets, resolved)
    target_layouts = layout.targets.values()
    # planned without batched factors: the cost of an input whose examples share one condition
    added = sum(plan_form(target_layout, ()).macs_per_token for target_layout in target_layouts)
    base = sum(_base_multiply_adds(target_layout) for target_layout in target_layouts)
    biases = _bias_numbers(model, config, targets)
    parameters = layout.num_params() + biases
    return CostSummary(
        method=method.name,
        formula=" ".join(method.formula.split()),
        ranks=_ranks(layout, method),
        targets=len(target_layouts),
        factors=_shared_factors(layout),
        parameters=parameters,
        base_parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=_file_bytes(layout, biases),
        training_bytes=ADAM_BYTES * parameters,
        multiply_adds=added,
        base_multiply_adds=base,
        overhead=added / base,
        skipped=skipped,
    )


def describe(model: nn.Module, config: AdapterConfig) -> AdapterDescription:
    """Describe an adapter target by target: shapes, the planned contraction and learned numbers.

    Args:
        model: The model; its weights may be on the "meta" device.
        config: The adapter.

    Raises:
        ValueError: The adapter does not fit the model, as in `metalora.attach`.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig
        >>> describe(nn.Sequential(nn.Linear(8, 8)), AdapterConfig("lora", 2, targets="0")).targets[0].k
        2
    """
    resolved = resolve(config)
    method = resolved.method
    targets, skipped = usable_targets(model, config)
    layout, biases = build_layout(targets, resolved), _bias_numbers(model, config, targets)
    return AdapterDescription(
        method=method.name,
        formula=" ".join(method.formula.split()),
        targets=[_describe_target(layout, target_layout) for target_layout in layout.targets.values()],
        parameters=layout.num_params() + biases,
        bytes=_file_bytes(layout, biases),
        skipped=skipped,
    )


def _describe_target(layout: Layout, target_layout: TargetLayout) -> TargetDescription:
    form = plan_form(target_layout, ())
    left, mid, right = form.summary
    target = target_layout.target
    read_by_target = [layout.params[factor_slice.key] for factor_slice in target_layout.views.values()]
    return TargetDescription(
        target=target.path,
        shape=" ".join(f"{mode}={size}" for mode, size in target.sizes.items()),
        left=left,
        mid=mid,
        right=right,
        k=form.rank,
        parameters=sum(prod(factor.shape) for factor in read_by_target if not factor.frozen),
    )


def _ranks(layout: Layout, method: Method) -> dict[str, int]:
    """Bond -> its size, the largest over all targets."""
    largest: dict[str, int] = {}
    for target_layout in layout.targets.values():
        for bond in method.rank_bonds:
            # a method of several components has bonds that not all of its targets have
            largest[bond] = max(largest.get(bond, 0), target_layout.sizes.get(bond, 0))
    return largest


def _shared_factors(layout: Layout) -> dict[str, str]:
    """Name -> shape of each factor that belongs to the whole model."""
    shapes = {}
    for key, factor in layout.params.items():
        if not factor.owner:  # owned by no target, layer or projection
            shape = " ".join(map(str, factor.shape))
            shapes[key] = f"{shape} frozen" if factor.frozen else shape
    return shapes


def _base_multiply_adds(target_layout: TargetLayout) -> int:
    """Multiply-adds of the target's own weight at one token or position."""
    sizes = target_layout.target.sizes
    return sizes["out"] * prod(sizes.get(mode, 1) for mode in INPUT_MODES)  # a Linear has no kh and kw


def _bias_numbers(model: nn.Module, config: AdapterConfig, targets: Sequence[Target]) -> int:
    """Numbers of the biases that are trained along."""
    bases = {target.path: model.get_submodule(target.path) for target in targets}
    return sum(shape.numel() for shape in bias_shapes(model, config, bases).values())


def _file_bytes(layout: Layout, biases: int) -> int:
    learned_factors = sum(not factor.frozen for factor in layout.params.values())
    header = HEADER_PER_FACTOR * learned_factors + HEADER_PER_TARGET * len(layout.targets) + HEADER_REST
    return 4 * (layout.num_params() + biases) + header  # float32
