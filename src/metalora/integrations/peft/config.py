"""The configuration of the tuner, and what is saved with it about its adapter."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, ClassVar, cast

import torch
from peft.utils import PeftType
from torch import nn

from metalora._util.suggest import nearest
from metalora.adapters.conditioning.extractor import check_no_download
from metalora.config import (
    LATER_FIELDS,
    STACKS_WITHOUT_FIELD,
    AdapterConfig,
    ConditionConfig,
    check_field,
    from_dict,
)
from metalora.integrations.peft.card import add_loading_instructions
from metalora.integrations.peft.peft_api import PeftConfig
from metalora.integrations.peft.registration import NAME
from metalora.io.lora.peft_patterns import by_path
from metalora.methods.registry import METHODS, get_method

SHARED_FIELDS = (
    "method", "alpha", "scale", "order", "experts", "tasks", "widths", "head_dim", "digits", "generated", "frozen",
    "init", "clip_rank", "dropout", "condition",
)  # fmt: skip
"""Fields that AdapterConfig has under the same name and with the same meaning."""


@dataclass(frozen=True)
class Source:
    """What the caller said who had a configuration read from a file.

    Attributes:
        extractor: The network of condition source "extractor".
        allow_download: Whether the one that the file names may be downloaded.
    """

    extractor: nn.Module | None = None
    allow_download: bool = False


# PEFT reads the file inside of its own functions, which pass nothing on.
SOURCE: ContextVar[Source] = ContextVar("the caller of metalora.peft.load", default=Source())  # noqa: B039 (frozen)


@dataclass
class TensorNetworkConfig(PeftConfig):
    """A tensor-network adapter for PEFT: any method of `metalora.methods()`, on any targets.

    A field with the name of a field of `metalora.AdapterConfig` has the same meaning; `r` is its rank. The other
    fields are PEFT's.

    Raises:
        ValueError: An unknown method, a value of the wrong type, or an invalid condition.

    Example:
        >>> import peft, torch, metalora.peft
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> config = metalora.peft.TensorNetworkConfig(method="vera", r=2, target_modules=["0"])
        >>> model = peft.get_peft_model(base, config)
        >>> model(torch.zeros(3, 6)).shape
        torch.Size([3, 4])
    """

    family: ClassVar[tuple[str, ...]] = tuple(METHODS)
    """The methods that this class accepts."""

    method: str = "lora"
    r: int | dict[str, int] | list[int] = 8
    """Rank of every bond, a rank per bond by name, or a rank per bond in the order of the method's modes."""
    alpha: float | None = None
    """Numerator of the scale; None means a scale of one."""
    target_modules: list[str] | str | None = None
    """Names of modules or a regular expression; or "all-linear"."""
    target_parameters: list[str] | None = None
    """Paths, or ends of paths, of parameters that a module reads itself: experts, routers, attention's projections."""
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    """Modules that are trained and saved in full next to the adapter."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Regular expression of a path -> its rank; only for methods whose targets share no factor."""
    scale: str | None = None
    order: list[str] | str | None = None
    experts: int = 4
    tasks: int = 1
    widths: str = "per_shape"
    stacks: str | None = None
    """None means "successive", and for a saved adapter without this field "aligned", as it was trained."""
    head_dim: int | None = None
    digits: dict[str, str] = field(default_factory=dict)
    generated: list[str] | None = None
    frozen: list[str] = field(default_factory=list)
    init: str | dict[str, str] = field(default_factory=dict)
    init_weights: bool = True
    """False makes the factors random that would start at zero, so that Delta W is not zero."""
    clip_rank: bool = False
    dropout: float = 0.0
    seed: int | None = None
    """None draws a seed from torch's generator."""
    condition: dict[str, Any] = field(default_factory=dict)
    """Fields of metalora.ConditionConfig."""
    placement: dict[str, Any] | None = None
    """Written by save_pretrained: the adapted targets, the adapter's tensors and the base; see saved_layout.py."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Regular expression of a path -> its alpha; `alpha`, that of the other targets, must be set too."""
    bias: str = "none"
    """lora_only (or adapted): the biases of the targets are trained along. PEFT's all is refused, see docs/peft.md."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME)
        if self.method not in self.family:
            raise ValueError(f"{type(self).__name__}: method {self.method!r}{nearest(self.method, self.family)}")
        condition: Any = self.condition  # a ConditionConfig is accepted in place of its fields
        if is_dataclass(condition) and not isinstance(condition, type):
            self.condition = asdict(condition)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):  # PEFT's own configurations do the same
                setattr(self, name, set(getattr(self, name)))
        if not _is_list_of_names(self.target_parameters):
            raise ValueError(
                f"{type(self).__name__}: target_parameters is {self.target_parameters!r}, expected a list of names"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{type(self).__name__}: layers_pattern needs layers_to_transform; set both")
        self.bias = _bias_in_peft(self.bias)
        self.adapter_config()  # checks the values
        self._saved_values: dict[str, Any] = {}
        self.source: Source | None = None  # no field, so that no file can set it

    def adapter_config(self, paths: tuple[str, ...] = ()) -> AdapterConfig:
        """Return the library's own configuration of the same adapter.

        Args:
            paths: Paths of the targets.

        Returns:
            The configuration, with a seed that is drawn if `seed` is None and there are targets.

        Raises:
            ValueError: A value of the wrong type, or an unknown field of the condition.
        """
        for own, shared in (("r", "rank"), ("rank_pattern", "rank_pattern"), ("alpha_pattern", "alpha_pattern")):
            check_field(AdapterConfig, shared, getattr(self, own), f"{type(self).__name__}.{own}")
        values = {name: getattr(self, name) for name in SHARED_FIELDS}
        default = "successive" if self.placement is None else STACKS_WITHOUT_FIELD
        values["stacks"] = default if self.stacks is None else self.stacks
        values |= {"rank": self.r, "targets": paths}
        values["bias"] = "none" if _bias_in_peft(self.bias) == "none" else "adapted"  # it may have been set since
        for name in ("rank_pattern", "alpha_pattern"):
            values[name] = by_path(getattr(self, name), paths, f"{type(self).__name__}.{name}")
        if self.seed is None and paths:  # without targets this only checks the values, which must draw nothing
            values["seed"] = int(torch.randint(2**31, ()))
        else:
            values["seed"] = self.seed or 0
        if not self.init_weights:
            values["init"] = self._init_without_zeros()
        return from_dict(AdapterConfig, values, type(self).__name__)

    def _init_without_zeros(self) -> dict[str, str]:
        """Factor -> its initialisation, "normal" for those that would start at zero."""
        if isinstance(self.init, str):
            raise ValueError(
                f"{type(self).__name__}: init is the code {self.init!r}, and init_weights=False needs a dictionary by "
                "factor; leave one of the two out"
            )
        kinds = {**get_method(self.method).init, **self.init}
        return {factor: "normal" if kind == "zeros" else kind for factor, kind in kinds.items()}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> TensorNetworkConfig:
        """Read adapter_config.json as PEFT does, and remember that the configuration is that of a file."""
        config = cast(TensorNetworkConfig, super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs))
        config.source = SOURCE.get()
        return config

    def extractor_from_caller(self) -> nn.Module | None:
        """Return the network that makes the features, if the caller of `load` has given one.

        Raises:
            ValueError: A file names a network that may be downloaded, and nobody has allowed it.
        """
        if self.source is None:
            return None
        if self.source.extractor is None and not self.source.allow_download:
            condition = from_dict(ConditionConfig, self.condition, "condition")
            check_no_download(condition, "condition", "allow_download=True to metalora.peft.load")
        return self.source.extractor

    def set_saved_values(self, values: dict[str, Any]) -> None:
        """Set the values that `to_dict` gives in place of the fields' own; the fields stay as they are.

        Args:
            values: Field -> value in the adapter that is about to be saved, such as the ranks after a sweep.
        """
        self._saved_values = values

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, with their values in the adapter if it is being saved."""
        values = {**super().to_dict(), **self._saved_values}
        # A field that earlier folders did not have is only there if it is set.
        return {
            name: value
            for name, value in values.items()
            if name not in (*LATER_FIELDS, "target_parameters") or value not in ({}, "none", None)
        }

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and add to a model card in the folder how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        add_loading_instructions(save_directory)


def _is_list_of_names(value: Any) -> bool:
    return value is None or (isinstance(value, list | set) and all(isinstance(name, str) for name in value))


def _bias_in_peft(bias: str) -> str:
    """Return PEFT's word for the biases that are trained; ValueError for what the tuner cannot train."""
    if bias == "all":
        raise ValueError(
            "bias='all' trains biases outside of the adapted layers, which the adapters of one PeftModel would share: "
            "take bias='lora_only', or metalora.attach with bias='all'"
        )
    if bias not in ("none", "adapted", "lora_only"):
        raise ValueError(f"bias {bias!r}{nearest(bias, ('none', 'lora_only', 'adapted'))}")
    return "none" if bias == "none" else "lora_only"
