"""Frozen configuration dataclasses and their strict loading; imports no torch."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from metalora._util.suggest import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class ConditionConfig:
    """What a generated factor is made from, and how: features -> mapping net -> factor.

    c = c0 + b tanh(g(z) / b) with c0 the factor's own (learned) value, z the standardised and clamped features.
    """

    source: Literal["stages", "pooled", "extractor", "stem", "tensor"] = "stages"
    """stages: per-stage channel mean and std of the frozen backbone; pooled: input of its classifier (the paper's
    reading); extractor: another frozen network; stem: statistics of `stem` in the same forward pass; tensor: yours"""
    scope: Literal["sample", "support", "constant"] = "sample"
    """sample: one condition per example; support: one per support set; constant: no mapping net, factors are learned"""
    labelled: bool = True
    """support only: between-class share of variance of each feature (label-aware) instead of the mean feature"""
    hidden: int = 32
    """width of the mapping net's hidden layer"""
    heads: Literal["target", "shared"] = "target"
    """target: a linear head per target; shared: one head and an embedding per target"""
    bound: float = 2.0
    """b of the range c0 + b tanh(g/b); 0 means unbounded"""
    clamp: float = 4.0
    """standardised features are clamped to plus or minus this"""
    dropout: float = 0.0
    """probability that a training condition is replaced by c0"""
    descriptor_dropout: float = 0.0
    """probability that a channel of the features is replaced by its neutral value while training"""
    extractor: str | None = None
    """timm model name (or local checkpoint) for source=extractor"""
    stages: tuple[str, ...] = ()
    """module paths whose outputs are the stages; empty: found by architecture"""
    stem: str | None = None
    """module path for source=stem"""
    feature_size: int | None = None
    """width of the features: needed for source=tensor, else learnt from an example input"""


@dataclass(frozen=True)
class AdapterConfig:
    """Which method, on which targets, at which size."""

    method: str = "lora"
    """one of metalora.methods()"""
    rank: int | dict[str, int] | tuple[int, ...] = 8
    """size of every bond, a size per bond by name, or a size per bond in the order of the method's modes"""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """glob patterns of module paths, as in targets: another rank there, where targets have no factor in common"""
    alpha: float | None = None
    """scale numerator; None means a scale of one"""
    scale: Literal["alpha/r", "alpha/sqrt(r)", "alpha"] | None = None
    """how alpha and the rank make the scale; None means the method's own"""
    targets: str | tuple[str, ...] = "all"
    """all, linear, conv, or glob patterns of module paths (a suffix of whole path components is enough)"""
    exclude: tuple[str, ...] = ()
    """patterns taken out of targets"""
    order: Literal["model", "tenslora"] | tuple[str, ...] | None = None
    """order of a tensor train's modes, such as [in, proj, layer, out], None meaning the method's own; or of the heads:
    the model's (as None), or interleaved as in TensLoRA's code"""
    experts: int = 4
    """size of the expert mode, where the method has one"""
    tasks: int = 1
    """size of the task mode, where the method has one"""
    widths: Literal["per_shape", "max_slice", "chunk"] = "per_shape"
    """a shared network at weights of unequal width: a boundary factor per shape; one of the largest, cut to size;
    or weights cut into squares, each a projection of its own"""
    head_dim: int | None = None
    """size of a head, where the method has heads and the model does not say it"""
    digits: dict[str, str] = field(default_factory=dict)
    """sizes, slowest first, that the method folds in or out into, such as {in: "64 4 3, 16 16 12"} for two widths;
    of any other width they are as equal as they can be, the smaller first. hidden: those of a bottleneck, its width"""
    generated: tuple[str, ...] | None = None
    """factors made by a mapping net; None means the method's own choice"""
    frozen: tuple[str, ...] = ()
    """factors that are not learned, beside the method's own: made from the seed, never saved"""
    init: str | dict[str, str] = field(default_factory=dict)
    """initialisation per factor, over the method's own, such as kaiming or normal:0.02; or a code of one word a factor,
    such as ze-id-id-id"""
    clip_rank: bool = False
    """lower a rank to what a target's modes allow, instead of refusing it"""
    dropout: float = 0.0
    """dropout on the hidden activation of the cut (rank space)"""
    seed: int = 0
    """seed of the factors and of the mapping net"""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """what generated factors are made from"""


@dataclass(frozen=True)
class RankScheduleConfig:
    """After which optimiser steps the ranks fall, and to what: MetaTT's sweeps between AdamW steps."""

    steps: tuple[int, ...] = ()
    """numbers of optimiser steps after which a sweep is made"""
    ranks: tuple[int, ...] = ()
    """the rank after each of them; empty: r(i) = r_f + (r_0 - r_f) (1 - (i / N)^gamma), from the adapter's rank r_0"""
    final: int = 0
    """r_f"""
    gamma: float = 2.0
    rounding: Literal["round", "floor", "ceil"] = "round"
    """of r(i) to a whole number"""
    mode: Literal["round", "paper"] = "round"
    """round: orthogonalise first; paper: Algorithm 1 as printed, for chains only"""
    gauge: Literal["left", "right", "balanced"] = "left"
    """where the norm is after a sweep: in the last factor, in the first, shared alike"""
    state: Literal["reset", "carry"] = "reset"
    """what becomes of the optimiser's moments; those of a ring cannot be carried"""


@dataclass(frozen=True)
class RankBudgetConfig:
    """How many singular values are kept, at which step and by which score: AdaLoRA's budget."""

    final: int = 4
    """b_T, the mean number of a target at the end (of all targets, where they share one network)"""
    start: int = 0
    """t_i: steps with all of them"""
    hold: int = 0
    """t_f: last steps, in which those that are kept stay the same"""
    every: int = 10
    """Delta T: steps from one choice to the next"""
    beta1: float = 0.85
    """share of the past in the sensitivity |w dL/dw|"""
    beta2: float = 0.85
    """share of the past in its uncertainty"""
    orthogonality: float = 0.5
    """gamma: weight in the loss of how far the vectors are from orthonormal"""


@dataclass(frozen=True)
class TrainConfig:
    """How an adapter is trained, by AdamW."""

    steps: int = 1500
    lr: float = 5e-3
    """learning rate of the factors"""
    mapping_lr_ratio: float = 0.2
    """learning rate of the mapping net, over that of the factors"""
    factor_lr_ratio: dict[str, float] = field(default_factory=dict)
    """learning rate of single factors, over that of the others"""
    weight_decay: float = 0.0
    schedule: Literal["onecycle", "linear", "constant"] = "onecycle"
    """of the learning rate; linear rises over the warm-up and falls to zero"""
    warmup: float = 0.3
    """share of the steps over which the rate rises"""
    penalty: float = 0.01
    """weight of the mean square of c - c0"""
    rank_schedule: RankScheduleConfig | None = None
    """when and how ranks fall while training, by sweeps"""
    rank_budget: RankBudgetConfig | None = None
    """how many singular values stay while training, by masks"""
    clip: float = 1.0
    """gradient norm, 0 for none"""
    accumulate: int = 1
    """batches whose mean gradient makes one step of the optimiser"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    store: Literal["float32", "float16"] = "float16"
    """numbers of the adapter file; the trained adapter is rounded to it before it is scored"""
    checkpoint_every: int = 500
    """steps between resumable checkpoints, where a path is given"""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from plain values; unknown keys and wrong types are errors that say what is known."""
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a mapping of keys to values, got {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ValueError(f"{where}: unknown key {key!r}{nearest(str(key), hints)}")
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}")
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if origin is Literal:
        return _literal(value, args, where)
    if origin in (typing.Union, types.UnionType):
        return _union(value, args, where)
    if origin is tuple and isinstance(value, (list, tuple)) and (Ellipsis in args or len(value) == len(args)):
        return tuple(_convert(item, args[0], f"{where}[{k}]") for k, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return {_convert(k, args[0], where): _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}")


def _literal(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value in choices:
        return value
    raise ValueError(f"{where}: unknown choice {value!r}{nearest(str(value), map(str, choices))}")


def _union(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in (c for c in choices if c is not type(None)):
        try:
            return _convert(value, choice, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0])


def read_yaml(path: str | Path) -> Any:
    """The plain values of a YAML file, {} for an empty one; ValueError if it is missing or damaged."""
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text()) or {}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
