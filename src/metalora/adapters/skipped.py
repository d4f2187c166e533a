"""What a preset of targets leaves out, and why: weights of its kind that cannot be adapted, and the output head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from metalora.adapters.stored_weight import QUANTISED
from metalora.adapters.targets import (
    PRESETS,
    READ_BY_ATTENTION,
    head_path,
    kind_of,
    matches,
    refusal,
)

OUTPUT_HEAD = "presets leave the output head, or else the last Linear, to you"
FUSED_EXPERTS = "experts that are fused into one parameter are not adapted"
NAMES_OF_MATRICES = re.compile(r"(^|_)(weight|proj|projection)(_|$)")  # not biases, tables of positions or tokens
NUMBER_OF_A_LAYER = re.compile(r"(^|(?<=[._]))\d+(?=\.)")
EXAMPLES = 2  # paths that a warning shows


@dataclass(frozen=True)
class SkippedWeight:
    """A weight of a preset's kind that the preset leaves out.

    Attributes:
        path: Path of the layer, or of the parameter if it is not the weight of a layer.
        reason: Why, the same words for all weights of one kind.

    Example:
        >>> SkippedWeight("blocks.3.attn.in_proj_weight", READ_BY_ATTENTION).pattern
        'blocks.*.attn.in_proj_weight'
    """

    path: str
    reason: str

    @property
    def pattern(self) -> str:
        """The path with stars for the numbers of layers, so that all layers of a network have one pattern."""
        return NUMBER_OF_A_LAYER.sub("*", self.path)


def skipped_weights(
    model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str] = ()
) -> tuple[SkippedWeight, ...]:
    """Return what a preset leaves out; nothing for patterns, since whoever writes them chooses.

    Args:
        model: The model, before it is adapted.
        targets: A preset or patterns, as in `find_targets`.
        exclude: Patterns of paths that the user leaves out, of the weights themselves or of a module above them; these
            are not returned.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6))
        >>> [(weight.path, weight.reason) for weight in skipped_weights(model, "conv")]
        [('1', 'grouped and depthwise convolutions are not adapted')]
        >>> skipped_weights(model, "conv", exclude=["1"])
        ()
    """
    if not isinstance(targets, str) or targets not in PRESETS:
        return ()
    head = head_path(model)
    skipped = []
    for path, module in model.named_modules():
        if path == head and kind_of(module) in PRESETS[targets]:
            skipped.append(SkippedWeight(path, OUTPUT_HEAD))
        else:
            skipped += _skipped_at(model, path, module, PRESETS[targets])
    return tuple(weight for weight in skipped if not _is_excluded(weight.path, exclude))


def _is_excluded(path: str, exclude: Sequence[str]) -> bool:
    words = path.split(".")
    above = [".".join(words[:depth]) for depth in range(1, len(words) + 1)]
    return any(matches(name, pattern) for name in above for pattern in exclude)


def _skipped_at(model: nn.Module, path: str, module: nn.Module, kinds: Sequence[str]) -> Iterator[SkippedWeight]:
    """What one module has of the kinds of a preset and cannot be adapted."""
    kind = kind_of(module)
    if kind is not None or isinstance(module, nn.modules.conv._ConvNd):
        reason = refusal(model, path, module)
        if reason is not None and (kind in kinds or (kind is None and "conv2d" in kinds)):
            yield SkippedWeight(path, reason.reason)
        return
    class_name = type(module).__name__
    if ("conv2d" if "Conv" in class_name else "linear") not in kinds:
        return
    names = _names_of_matrices(path, module)
    for name in names:
        yield SkippedWeight(f"{path}.{name}".lstrip("."), _reason_of_parameter(path, module))
    if not names and _is_quantised_layer(module):
        yield SkippedWeight(path, QUANTISED)


def _names_of_matrices(path: str, module: nn.Module) -> list[str]:
    """The parameters of a module, itself no layer that can be adapted, that multiply its input as a matrix."""
    class_name = type(module).__name__
    if "Norm" in class_name or "Embed" in class_name:
        return []
    names = []
    for name, parameter in module.named_parameters(recurse=False):
        is_matrix = sum(size > 1 for size in parameter.shape) >= 2
        is_named_so = bool(NAMES_OF_MATRICES.search(name)) or _has_experts(path, module)
        if is_matrix and is_named_so and "bias" not in name:
            names.append(name)
    return names


def _has_experts(path: str, module: nn.Module) -> bool:
    return "experts" in f"{path} {type(module).__name__}".lower()


def _reason_of_parameter(path: str, module: nn.Module) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return READ_BY_ATTENTION
    if _has_experts(path, module):
        return FUSED_EXPERTS
    return f"{type(module).__name__} holds this matrix itself, not in a layer that can be adapted"


def _is_quantised_layer(module: nn.Module) -> bool:
    """Whether a module is a layer whose weight is in buffers, as those of quantisation libraries."""
    class_name = type(module).__name__
    has_matrix = any(buffer.ndim >= 2 for buffer in module.buffers(recurse=False))
    return has_matrix and ("Linear" in class_name or "Conv" in class_name)


def by_reason(skipped: Sequence[SkippedWeight]) -> dict[str, list[SkippedWeight]]:
    """Group skipped weights by their reason, in the order in which the reasons occur.

    Example:
        >>> [*by_reason([SkippedWeight("a", "x"), SkippedWeight("b", "y"), SkippedWeight("c", "x")])]
        ['x', 'y']
    """
    groups: dict[str, list[SkippedWeight]] = {}
    for weight in skipped:
        groups.setdefault(weight.reason, []).append(weight)
    return groups


def skipped_sentences(skipped: Sequence[SkippedWeight]) -> list[str]:
    """Describe skipped weights completely: for each reason their number and the patterns of their paths.

    Example:
        >>> skipped_sentences([SkippedWeight(f"blocks.{layer}.dw", "Conv3d is not adapted") for layer in range(12)])
        ['12 weights because Conv3d is not adapted: blocks.*.dw']
    """
    sentences = []
    for reason, weights in by_reason(skipped).items():
        patterns = ", ".join(dict.fromkeys(weight.pattern for weight in weights))
        sentences.append(f"{_counted(weights)} because {reason}: {patterns}")
    return sentences


def warning_of(skipped: Sequence[SkippedWeight], targets: str, model_name: str) -> str | None:
    """The line that tells a user what a preset could not adapt; None if there is nothing but the output head.

    Args:
        skipped: What the preset leaves out.
        targets: The preset.
        model_name: The model, for the message.

    Example:
        >>> warning_of([SkippedWeight("fc", OUTPUT_HEAD)], "all", "Net") is None
        True
    """
    parts = []
    for reason, weights in by_reason([weight for weight in skipped if weight.reason != OUTPUT_HEAD]).items():
        first_of_pattern: dict[str, str] = {}
        for weight in weights:
            first_of_pattern.setdefault(weight.pattern, weight.path)
        paths = dict.fromkeys([*first_of_pattern.values(), *(weight.path for weight in weights)])
        examples = ", ".join([*paths][:EXAMPLES]) + (", ..." if len(paths) > EXAMPLES else "")
        parts.append(f"{_counted(weights)} because {reason} ({examples})")
    if not parts:
        return None
    return (
        f"targets {targets!r} leave out weights of {model_name}, which stay frozen: {'; '.join(parts)}. "
        "adapter.skipped lists them; what you exclude is not reported"
    )


def _counted(weights: Sequence[SkippedWeight]) -> str:
    return "1 weight" if len(weights) == 1 else f"{len(weights)} weights"
