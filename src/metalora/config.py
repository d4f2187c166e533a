"""Frozen configuration dataclasses and their strict loading; imports no torch.

The text below a field is also its help text on the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from metalora._util.field_texts import add_fields_to_docstring
from metalora._util.number_range import PROBABILITY, SEED, Items, Range
from metalora._util.plain_values import parse_yaml
from metalora._util.reading import read_text
from metalora._util.shown import cut, shown
from metalora._util.suggest import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)
else:
    Config = TypeVar("Config")


class Configuration:
    """The base of all configurations: it checks the names of fields, their types, ranges and choices.

    Its subclasses have a text below each field, which `help` shows.

    Example:
        >>> TrainConfig(lr=-1.0)
        Traceback (most recent call last):
        ValueError: TrainConfig.lr is -1.0, expected more than 0
        >>> AdapterConfig(target="query")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: AdapterConfig: unknown key 'target'; did you mean 'targets'? (known: alpha, ...)
        >>> ConditionConfig(scope="supprt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ConditionConfig.scope: unknown choice 'supprt'; did you mean 'support'? (known: constant, ...)
    """

    def __init_subclass__(cls) -> None:
        add_fields_to_docstring(cls)

    def __new__(cls, *_: Any, **fields: Any) -> Self:
        _check_names(cls, fields, cls.__name__)  # before `__init__`, whose TypeError does not name the nearest field
        return super().__new__(cls)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for item in dataclasses.fields(cls):
            check_field(cls, item.name, getattr(self, item.name), f"{cls.__name__}.{item.name}")


@dataclass(frozen=True)
class ConditionConfig(Configuration):
    """How a generated factor is made: features of the input -> mapping net -> factor.

    c = c0 + b tanh(g(z) / b), with c0 the learned value of the factor, z the standardised and clamped features, g the
    mapping net and b the bound.

    Example:
        >>> ConditionConfig(source="stem", stem="conv1").scope
        'sample'
    """

    source: Literal["stages", "pooled", "extractor", "stem", "tensor"] = "stages"
    """where the features come from. stages: mean and standard deviation of each channel at each stage of the frozen
    backbone; pooled: the input of its classifier, as in the paper; extractor: another frozen network; stem: statistics
    of the module `stem`, in the same forward pass; tensor: features that you pass yourself"""
    scope: Literal["sample", "support", "constant"] = "sample"
    """sample: one condition per example; support: one per support set; constant: no mapping net, every factor is an
    ordinary learned one"""
    labelled: bool = True
    """for scope=support: use the labels, so that a feature is the share of its variance that lies between the classes;
    false: use the mean of each feature"""
    hidden: Annotated[int, Range(least=1)] = 32
    """width of the hidden layer of the mapping net"""
    heads: Literal["target", "shared"] = "target"
    """output layer of the mapping net. target: one linear layer per target; shared: one for all targets, with a learned
    embedding per target"""
    bound: Annotated[float, Range(least=0)] = 2.0
    """the bound b: a generated factor stays within c0 - b and c0 + b; 0 means no bound"""
    clamp: Annotated[float, Range(above=0)] = 4.0
    """standardised features are clamped to this many standard deviations"""
    dropout: Annotated[float, PROBABILITY] = 0.0
    """probability that, while training, a condition is replaced by c0"""
    descriptor_dropout: Annotated[float, PROBABILITY] = 0.0
    """probability that, while training, a channel of the features is replaced by its neutral value"""
    extractor: str | None = None
    """for source=extractor: a pretrained model of timm, such as resnet18 or timm:resnet18; the same with the weights of
    a file, such as resnet18@weights.pth or timm:resnet18@weights.safetensors; or efficientnet-lite0"""
    image_mean: Annotated[tuple[float, ...] | None, Range()] = None
    """for source=extractor: mean of each channel that is subtracted from the images of the backbone. They are turned
    into the normalisation, and the fixed size if there is one, of the extractor. none: as the backbone states it, which
    models of timm do; of another backbone, the extractor gets the images as they are, with a warning"""
    image_std: Annotated[tuple[float, ...] | None, Range(above=0)] = None
    """for source=extractor: standard deviation of each channel by which they are divided"""
    image_size: Annotated[int | None, Range(least=1)] = None
    """for source=extractor: height and width to which its images are resized; none: as they are, or the fixed size of
    the extractor"""
    stages: tuple[str, ...] = ()
    """module paths whose outputs are the stages; empty: chosen by the architecture of the model"""
    stem: str | None = None
    """for source=stem: path of the module"""
    tokens: Literal["prompt", "all"] = "prompt"
    """for scope=sample on a language model that answers (a causal one, or an encoder-decoder): which tokens make the
    condition. prompt: those before the answer, in training as in decoding; all: also those of the answer, which gives
    the answer away in training"""
    feature_size: Annotated[int | None, Range(least=1)] = None
    """number of features per example; required for source=tensor, otherwise measured on an example input"""


@dataclass(frozen=True)
class AdapterConfig(Configuration):
    """Which method adapts which targets, and at which size.

    Example:
        >>> config = AdapterConfig("metatt-4d", rank=4, targets=("query", "value"), alpha=1.0)
        >>> from_dict(AdapterConfig, to_dict(config)) == config
        True
    """

    method: str = "lora"
    """name of the method; `metalora methods` lists all of them"""
    rank: Annotated[int | dict[str, int] | tuple[int, ...], Range(least=1), Items(may_repeat=True)] = 8
    """size of every bond; or a size per bond by name; or a size per bond, in the order of the method's modes"""
    rank_pattern: Annotated[dict[str, int], Range(least=1)] = field(default_factory=dict)
    """ranks of single targets: glob patterns of module paths, as in `targets`, and their ranks; only for methods whose
    targets share no factor"""
    alpha: Annotated[float | None, Range()] = None
    """numerator of the scale of Delta W; none: the scale is 1"""
    scale: Literal["alpha/r", "alpha/sqrt(r)", "alpha"] | None = None
    """how alpha and the rank r give the scale; none: as the method defines it"""
    targets: str | tuple[str, ...] = "all"
    """which modules are adapted: all, linear, conv, or glob patterns of module paths (the last components of a path are
    enough, such as query for encoder.layer.0.attention.self.query)"""
    exclude: tuple[str, ...] = ()
    """glob patterns of module paths that are not adapted although `targets` matches them"""
    order: Literal["model", "tenslora"] | tuple[str, ...] | None = None
    """for a tensor train: the order of its modes, such as in proj layer out; for a method with heads: model (the order
    in the weight) or tenslora (interleaved, as in TensLoRA's code); none: the default of the method"""
    experts: Annotated[int, Range(least=1)] = 4
    """number of experts, for a method with an expert mode"""
    tasks: Annotated[int, Range(least=1)] = 1
    """number of tasks, for a method with a task mode"""
    widths: Literal["per_shape", "max_slice", "chunk"] = "per_shape"
    """what a shared network does with weights of unequal width. per_shape: a boundary factor per width; max_slice: one
    boundary factor of the largest width, of which narrower weights use a slice; chunk: weights are cut into squares,
    and each square is a projection of its own"""
    stacks: Literal["successive", "aligned"] = "successive"
    """how a shared network counts the layers of several module stacks, such as a text and a vision tower, or encoder
    and decoder. successive: one stack after another, so that no two layers share a slice, and a projection of the same
    name is the same in every stack; aligned: layer k of every stack is one layer, with the projections of them all"""
    head_dim: Annotated[int | None, Range(least=1)] = None
    """size of an attention head, for a method with a head mode, if the model does not tell it"""
    digits: dict[str, str] = field(default_factory=dict)
    """sizes into which a tensorised method splits a mode, the slowest first, such as {in: "64 4 3, 16 16 12"} for two
    widths; a width without an entry is split as equally as possible, the smaller sizes first. hidden: the sizes of the
    hidden layer of a bottleneck, which set its width"""
    generated: tuple[str, ...] | None = None
    """names of the factors that the mapping net makes; none: as the method defines it"""
    frozen: tuple[str, ...] = ()
    """names of factors that are not learned, in addition to those of the method: made from the seed and never saved"""
    init: str | dict[str, str] = field(default_factory=dict)
    """initialisation of factors, instead of the method's own: by factor, such as kaiming or normal:0.02; or one code
    with two letters per factor, such as ze-id-id-id; or a start of LoRA: pissa, olora, and eva and corda, which
    need data"""
    clip_rank: bool = False
    """lower a rank that is larger than the modes of a target allow, instead of raising an error"""
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    """dropout probability of the hidden activation x Left, (batch, tokens, rank), while training"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial factors, of the frozen factors and of the mapping net"""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """how generated factors are made"""
    alpha_pattern: Annotated[dict[str, float], Range()] = field(default_factory=dict)
    """alpha of single targets: glob patterns of module paths, as in `targets`, and their alphas; the other targets have
    `alpha`, which must be set too"""
    bias: Literal["none", "adapted", "all"] = "none"
    """biases of the base that are trained along; the adapter has their changes, and the base keeps its own. adapted:
    those of the targets (lora_only in PEFT), of which a target without a bias has none; all: those of all layers that
    `exclude` does not name"""


@dataclass(frozen=True)
class RankScheduleConfig(Configuration):
    """Sweeps that lower the ranks while training: after which steps, and to which ranks (MetaTT, arXiv:2506.09105).

    Example:
        >>> RankScheduleConfig(steps=(500, 1000), ranks=(6, 4)).mode
        'round'
    """

    steps: Annotated[tuple[int, ...], Range(least=1)] = ()
    """numbers of optimiser steps after which a sweep runs"""
    ranks: Annotated[tuple[int, ...], Range(least=1)] = ()
    """the rank after each of these sweeps; empty: r(i) = r_f + (r_0 - r_f) (1 - (i / N)^gamma) after sweep i of N,
    with r_0 the rank of the adapter"""
    final: Annotated[int, Range(least=0)] = 0
    """r_f: the rank after the last sweep, if `ranks` is empty"""
    gamma: Annotated[float, Range(above=0)] = 2.0
    """exponent of the formula for the ranks: above 1 they fall late, below 1 early"""
    rounding: Literal["round", "floor", "ceil"] = "round"
    """how r(i) becomes an integer"""
    mode: Literal["round", "paper"] = "round"
    """round: make the network orthogonal first, so that every truncation is optimal; paper: Algorithm 1 as printed, for
    tensor trains only"""
    gauge: Literal["left", "right", "balanced"] = "left"
    """where a sweep leaves the norm: left: in the last factor; right: in the first; balanced: equally in all"""
    state: Literal["reset", "carry"] = "reset"
    """what a sweep does with the moments of the optimiser: reset them to zero, or carry them over to the smaller
    factors; those of a tensor ring cannot be carried"""
    importance: Literal["magnitude", "sensitivity"] = "magnitude"
    """which singular values s stay. magnitude: the largest; sensitivity: those with the largest s |dL/ds|, the mean
    over the last steps before the sweep; not for rings, nor with mode paper"""
    importance_steps: Annotated[int, Range(least=1)] = 16
    """for sensitivity: the number of optimiser steps before a sweep whose gradients count"""


@dataclass(frozen=True)
class RankBudgetConfig(Configuration):
    """Masks of singular values that lower the ranks while training, by importance (AdaLoRA, arXiv:2303.10512).

    Example:
        >>> RankBudgetConfig(final=4, start=100, hold=200).every
        10
    """

    final: Annotated[int, Range(least=1)] = 4
    """b_T: mean number of singular values per target at the end; of all targets together if they share one network"""
    start: Annotated[int, Range(least=0)] = 0
    """t_i: number of first steps in which all singular values stay"""
    hold: Annotated[int, Range(least=0)] = 0
    """t_f: number of last steps in which the choice no longer changes"""
    every: Annotated[int, Range(least=1)] = 10
    """Delta T: number of steps between two choices"""
    beta1: Annotated[float, Range(above=0, below=1)] = 0.85
    """weight of the past in the running mean of the sensitivity |w dL/dw|"""
    beta2: Annotated[float, Range(above=0, below=1)] = 0.85
    """weight of the past in the running mean of the uncertainty of the sensitivity"""
    orthogonality: Annotated[float, Range(least=0)] = 0.5
    """gamma: weight of the penalty on singular vectors that are not orthonormal"""


@dataclass(frozen=True)
class TwoSiteConfig(Configuration):
    """Two-site DMRG: the bonds of a tensor train are trained one after another (future work of arXiv:2506.09105).

    Example:
        >>> TwoSiteConfig(bond_steps=100, tolerance=0.01).sweeps
        1
    """

    bond_steps: Annotated[int, Range(least=1)] = 50
    """number of optimiser steps on the merged tensor of two neighbouring cores before it is split"""
    sweeps: Annotated[int, Range(least=1)] = 1
    """number of sweeps over all bonds, to the right and back"""
    start: Annotated[int, Range(least=0)] = 0
    """number of first steps in which all cores are trained together"""
    rank: Annotated[int, Range(least=0)] = 0
    """largest size of a bond after its split; 0: what each bond has when training starts"""
    tolerance: Annotated[float, Range(least=0, below=1)] = 0.0
    """a split discards at most this part of the norm, if the largest size allows it; 0: that size alone counts"""
    svd: Literal["exact", "randomised"] = "exact"
    """how a merged tensor is split. randomised: in a random range a little above the largest size, with a fixed seed"""


@dataclass(frozen=True)
class TrainConfig(Configuration):
    """How an adapter is trained with AdamW.

    Example:
        >>> TrainConfig(steps=200, lr=1e-3, factor_lr_ratio={"B": 16.0}).schedule
        'onecycle'
    """

    steps: Annotated[int, Range(least=0)] = 1500
    """number of optimiser steps"""
    lr: Annotated[float, Range(above=0)] = 5e-3
    """peak learning rate of the factors"""
    mapping_lr_ratio: Annotated[float, Range(least=0)] = 0.2
    """learning rate of the mapping net, as a multiple of `lr`"""
    factor_lr_ratio: Annotated[dict[str, float], Range(least=0)] = field(default_factory=dict)
    """learning rates of single factors by name, as multiples of `lr`"""
    weight_decay: Annotated[float, Range(least=0)] = 0.0
    """decoupled weight decay of AdamW, for everything that is trained"""
    schedule: Literal["onecycle", "linear", "constant", "cosine"] = "onecycle"
    """course of the learning rate. onecycle: up and down along cosines; linear: up over the warm-up, then down to zero;
    constant: always `lr`; cosine: up over the warm-up in a straight line, then down to zero along half a cosine"""
    warmup: Annotated[float, PROBABILITY] = 0.3
    """share of the steps over which the learning rate rises, between 0 and 1"""
    penalty: Annotated[float, Range(least=0)] = 0.01
    """weight of the mean square of c - c0 in the loss, for generated factors; the loss function adds it"""
    rank_schedule: RankScheduleConfig | None = None
    """lower the ranks while training, by sweeps"""
    rank_budget: RankBudgetConfig | None = None
    """lower the ranks while training, by masks of singular values"""
    two_site: TwoSiteConfig | None = None
    """train the bonds of a tensor train one after another, with ranks that follow"""
    clip: Annotated[float, Range(least=0)] = 1.0
    """largest norm of the gradient; a larger gradient is scaled down to it; 0: no limit"""
    accumulate: Annotated[int, Range(least=1)] = 1
    """number of batches whose mean gradient makes one optimiser step"""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """dtype of the operations that autocast lowers"""
    store: Literal["float32", "float16"] = "float16"
    """dtype of the numbers in the adapter file of an experiment; the adapter is rounded to it before it is scored"""
    checkpoint_every: Annotated[int, Range(least=1)] = 500
    """number of optimiser steps between two checkpoints, for a run that has a checkpoint file"""


def to_dict(config: DataclassInstance) -> dict[str, Any]:
    """Return a configuration as nested dictionaries of plain values.

    Example:
        >>> to_dict(RankBudgetConfig(final=2))["final"]
        2
    """
    return dataclasses.asdict(config)


LATER_CONDITION_FIELDS = ("tokens", "image_mean", "image_std", "image_size")
"""Fields of a condition that the first files of adapters did not have."""


LATER_FIELDS = ("alpha_pattern", "bias", "stacks")
"""Fields of an adapter that the first files of adapters did not have."""


def config_in_file(config: AdapterConfig, stacks: int = 1) -> dict[str, Any]:
    """Return an adapter's configuration as files of adapters hold it.

    A field that the first files did not have is left out where it changes nothing, so that earlier versions read the
    file.

    Args:
        config: The configuration.
        stacks: Number of the stacks whose layers are counted; below two, `config.stacks` changes nothing.

    Example:
        >>> "alpha_pattern" in config_in_file(AdapterConfig())
        False
        >>> config_in_file(AdapterConfig(alpha=1.0, alpha_pattern={"query": 2.0}))["alpha_pattern"]
        {'query': 2.0}
        >>> config_in_file(AdapterConfig("metatt-4d"), stacks=2)["stacks"]
        'successive'
    """
    values = to_dict(config)
    unchanged = {name for name in LATER_FIELDS if name != "stacks" and values[name] == getattr(AdapterConfig(), name)}
    if stacks < 2 or config.stacks == STACKS_WITHOUT_FIELD:
        unchanged.add("stacks")
    kept = {name: value for name, value in values.items() if name not in unchanged}
    return kept | {"condition": condition_in_file(config.condition)}


def condition_in_file(condition: ConditionConfig) -> dict[str, Any]:
    """Return a condition's configuration as files of adapters hold it.

    A field that the first files did not have is left out at its default, so that earlier versions read the file.

    Example:
        >>> "tokens" in condition_in_file(ConditionConfig())
        False
        >>> condition_in_file(ConditionConfig(tokens="all"))["tokens"]
        'all'
    """
    default = ConditionConfig()
    return {
        name: value
        for name, value in to_dict(condition).items()
        if name not in LATER_CONDITION_FIELDS or value != getattr(default, name)
    }


def missing_in_file(values: Mapping[str, Any]) -> str | None:
    """Return a field that the configuration in a file of an adapter lacks although all such files have it, or None.

    Example:
        >>> missing_in_file(config_in_file(AdapterConfig())) is None
        True
        >>> missing_in_file({"method": "lora", "condition": {}})
        'rank'
    """
    parts = (
        ("", AdapterConfig, values, LATER_FIELDS),
        ("condition.", ConditionConfig, values.get("condition", {}), LATER_CONDITION_FIELDS),
    )
    for prefix, cls, present, later in parts:
        for item in dataclasses.fields(cls):
            if item.name not in present and item.name not in later:
                return prefix + item.name
    return None


STACKS_WITHOUT_FIELD: Literal["aligned"] = "aligned"
"""What `AdapterConfig.stacks` is in a file without this field, as in all that were written before there was one."""


def from_dict(cls: type[Config], values: Mapping[str, Any], place: str = "") -> Config:
    """Build a configuration from plain values, such as those of a YAML file.

    Args:
        cls: The dataclass to build.
        values: Values by field name; nested configurations are mappings, tuples may be lists.
        place: The place that error messages name, such as a file; the name of the class if empty.

    Raises:
        ValueError: A field is unknown or missing, a value has another type than its field, or a number is out of the
            range of its field. The message names the place, the dotted path of the field, what was expected and, for a
            name, the nearest valid one.

    Example:
        >>> from_dict(ConditionConfig, {"source": "stem", "stem": "conv1", "bound": 1}).bound
        1.0
        >>> from_dict(ConditionConfig, {"sorce": "stem"})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ConditionConfig: unknown key 'sorce'; did you mean 'source'? (known: bound, clamp, ...)
    """
    place = place or cls.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{place}: expected a mapping of keys to values, got {shown(values)}")
    hints = _hints(cls)
    _check_names(cls, values, place)
    for required in _required_fields(cls):
        if required not in values:
            raise ValueError(f"{place}: missing key {required!r}")
    return cls(**{key: _convert(value, hints[key], f"{place}.{key}") for key, value in values.items()})


def read_yaml(path: str | Path) -> Any:
    """Read the plain values of a YAML file.

    Returns:
        The values, or {} for an empty file.

    Raises:
        ValueError: The file is missing or is not valid YAML, or a key is there twice; the message has its line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "adapter.yaml"
        ...     _ = path.write_text("method: lotr\\nrank: 4")
        ...     from_dict(AdapterConfig, read_yaml(path), str(path)).rank
        4
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}), expected a YAML file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    return parse_yaml(text, str(path)) or {}


def check_field(cls: type, name: str, value: Any, place: str) -> None:
    """Check that a value has the type and the range of a field.

    Args:
        cls: The configuration.
        name: Its field.
        value: The value.
        place: What the message calls the field.

    Raises:
        ValueError: The value is not one of this field.

    Example:
        >>> check_field(AdapterConfig, "rank", 0, "r")
        Traceback (most recent call last):
        ValueError: r is 0, expected at least 1
    """
    _convert(value, _hints(cls)[name], place)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Return field -> its type, with its conditions; the annotations are strings here, this evaluates them."""
    return typing.get_type_hints(cls, include_extras=True)


def _check_names(cls: type, names: Iterable[Any], place: str) -> None:
    """Raise a ValueError for the first name that is no field, with the nearest field."""
    fields = _hints(cls)
    for name in names:
        if name not in fields:
            raise ValueError(f"{place}: unknown key {shown(name)}{nearest(str(name), fields)}")


def _required_fields(cls: type[DataclassInstance]) -> list[str]:
    """Return the names of the fields that have no default."""
    return [
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]


# ---- plain values -> values of a type --------------------------------------------------------------------------------
def _convert(value: Any, hint: Any, place: str) -> Any:
    """Return a plain value as a value of the type `hint`; ValueError if it is not one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert_annotated(value, hint, place)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, place)  # nested fields have a dotted path
    if origin is Literal:
        return _convert_literal(value, arguments, place)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, place)
    # YAML has no tuples, so a list stands for one
    if origin is tuple and isinstance(value, (list, tuple)) and (Ellipsis in arguments or len(value) == len(arguments)):
        return tuple(_convert(item, arguments[0], f"{place}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        return _convert_mapping(value, arguments, place)
    return _convert_scalar(value, hint, place)


def _convert_annotated(value: Any, hint: Any, place: str) -> Any:
    """Return the value of a field with conditions, such as a range; ValueError if it does not meet one of them."""
    converted = _convert(value, hint.__origin__, place)
    for condition in hint.__metadata__:
        condition.check(converted, place)
    return converted


def _convert_mapping(value: Mapping[Any, Any], hints: tuple[Any, ...], place: str) -> dict[Any, Any]:
    """Return the mapping with its keys and items converted to the two types of a `dict` hint."""
    key_hint, item_hint = hints
    converted = {}
    for key, item in value.items():
        converted[_convert(key, key_hint, place)] = _convert(item, item_hint, f"{place}.{cut(str(key))}")
    return converted


def _convert_scalar(value: Any, hint: Any, place: str) -> Any:
    """Return a number, string or truth value; an integer may stand for a float, but a bool is not an integer."""
    # in Python a bool is an int: `rank: true` would be rank 1; the numbers of NumPy are numbers, too
    is_bool = isinstance(value, bool)
    if hint is float and isinstance(value, Real) and not is_bool:
        return _as_float(value)
    if hint is int and isinstance(value, Integral) and not is_bool:
        return int(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and is_bool):
        return value
    raise ValueError(f"{place}: expected {getattr(hint, '__name__', hint)}, got {shown(value)}")


def _as_float(value: Any) -> float:
    """Return a number as a float; an integer that no float reaches is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _convert_literal(value: Any, choices: tuple[Any, ...], place: str) -> Any:
    """Return the value if it is one of the choices of a Literal."""
    if value in choices:
        return value
    raise ValueError(f"{place}: unknown choice {shown(value)}{nearest(str(value), map(str, choices))}")


def _convert_union(value: Any, hints: tuple[Any, ...], place: str) -> Any:
    """Return the value as the first type of a union that takes it; the error is that of the first type."""
    if value is None and type(None) in hints:
        return None
    errors = []
    for hint in hints:
        if hint is type(None):
            continue
        try:
            return _convert(value, hint, place)
        except ValueError as error:
            errors.append(str(error))
    # the type that is declared first is the usual one, so its error helps most
    raise ValueError(errors[0])
