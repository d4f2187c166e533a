"""The one configuration of the tuner, and what of an adapter is saved in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.utils import PeftType

from metalora._util.suggest import nearest
from metalora.config import AdapterConfig, from_dict
from metalora.integrations.peft.card import say_how_to_load
from metalora.integrations.peft.registration import NAME
from metalora.methods.registry import METHODS, get_method

SAME = (
    "method", "alpha", "scale", "order", "experts", "tasks", "widths", "head_dim", "digits", "generated", "frozen",
    "init", "clip_rank", "dropout", "condition",
)  # fmt: skip
"""Fields that are those of AdapterConfig, under the same name."""


@dataclass
class TensorNetworkConfig(PeftConfig):
    """A tensor-network adapter for PEFT: any method of `metalora.methods()`, on any targets.

    What has the name of a field of `metalora.AdapterConfig` means the same; `r` is its rank. The rest is PEFT's.
    ValueError: an unknown method, a value of the wrong type, a condition that is none.
    """

    family: ClassVar[tuple[str, ...]] = tuple(METHODS)

    method: str = "lora"
    r: int | dict[str, int] | list[int] = 8  # of every bond, by name of the bond, or in the order of the modes
    alpha: float | None = None  # None: a scale of one
    target_modules: list[str] | str | None = None  # names or a regular expression; "all-linear"
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None  # trained and saved whole
    rank_pattern: dict[str, int] = field(
        default_factory=dict
    )  # regular expression -> rank; for methods of no shared factor
    scale: str | None = None
    order: list[str] | str | None = None
    experts: int = 4
    tasks: int = 1
    widths: str = "per_shape"
    head_dim: int | None = None
    digits: dict[str, str] = field(default_factory=dict)
    generated: list[str] | None = None
    frozen: list[str] = field(default_factory=list)
    init: str | dict[str, str] = field(default_factory=dict)
    init_weights: bool = True  # False: factors that would start at zero are random, so that Delta W is not zero
    clip_rank: bool = False
    dropout: float = 0.0
    seed: int | None = None  # None: drawn from torch's generator
    condition: dict[str, Any] = field(default_factory=dict)  # fields of metalora.ConditionConfig
    placement: dict[str, Any] | None = None  # written by save_pretrained: what is adapted, and of which base

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType(NAME)
        if self.method not in self.family:
            raise ValueError(f"{type(self).__name__}: method {self.method!r}{nearest(self.method, self.family)}")
        if is_dataclass(self.condition):
            self.condition = asdict(self.condition)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{type(self).__name__}: layers_pattern says where layers_to_transform are; set both")
        self.adapter_config()
        self._made: dict[str, Any] = {}

    def adapter_config(self, paths: tuple[str, ...] = (), ranks: dict[str, int] | None = None) -> AdapterConfig:
        """The library's own configuration of the same adapter, on the targets of these paths."""
        values = {name: getattr(self, name) for name in SAME}
        values |= {"rank": self.r, "targets": paths, "rank_pattern": ranks or {}}
        values["seed"] = int(torch.randint(2**31, ())) if self.seed is None and paths else self.seed or 0
        if not self.init_weights:
            values["init"] = self._nowhere_zero()
        return from_dict(AdapterConfig, values, type(self).__name__)

    def _nowhere_zero(self) -> dict[str, str]:
        if isinstance(self.init, str):
            raise ValueError(f"{type(self).__name__}: init is the code {self.init!r}, so init_weights=False is lost")
        every = {**get_method(self.method).init, **self.init}
        return {factor: "normal" if kind == "zeros" else kind for factor, kind in every.items()}

    def made(self, values: dict[str, Any]) -> None:
        """What became of the fields in an adapter that is about to be saved; the object itself stays as it is."""
        self._made = values

    def to_dict(self) -> dict[str, Any]:
        """All fields, with what the saved adapter made of them."""
        return {**super().to_dict(), **self._made}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and how to load the adapter into the model card, where there is one."""
        super().save_pretrained(save_directory, **kwargs)
        say_how_to_load(save_directory)
