"""What other modules read of an adapted layer: its weight and bias with the adapter, all else as the base has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.layers.adapted_tensor import AdaptedTensor
from metalora.adapters.layers.looked_at import LookedAt
from metalora.adapters.weight_readers import runs_without_tensors


class ReadAsBase(nn.Module, ABC):
    """A layer around a base that answers for it when a model reads its attributes.

    Models do so to choose a type (`self.proj.weight.dtype`), to compute sizes (`self.conv.stride`), or to run the
    layer's product themselves (`F.linear(x, self.qkv.weight)`). Then the adapter must take part, or refuse.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Conv1d(4, 6, 3, stride=2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model[0].stride, model[0].weight.dtype
        ((2,), torch.float32)
    """

    is_computed_with = False  # True if a module of the model is known to compute with the weight by itself

    @property
    @abstractmethod
    def wrapped(self) -> nn.Module:
        """The base."""

    @property
    @abstractmethod
    def path_of_target(self) -> str:
        """Path of the layer, for messages."""

    @abstractmethod
    def weight_change(self) -> Tensor | None:
        """Return Delta W (*weight) as the adapter acts now, with a gradient to its factors; None for no change.

        Raises:
            ValueError: No single Delta W does what the adapter does now.
        """

    @abstractmethod
    def bias_change(self) -> Tensor | None:
        """Return the change of the bias (o,) as the adapter acts now; None for no change.

        Raises:
            ValueError: The change differs by example.
        """

    @abstractmethod
    def has_one_weight(self) -> bool:
        """Return True if one W + Delta W is all that the adapter does now."""

    @property
    @abstractmethod
    def changes_bias(self) -> bool:
        """True if the adapter may change the bias."""

    def stored(self, name: str) -> Tensor:
        """The base's own tensor, (*weight) for "weight" and (o,) for "bias"."""
        value = getattr(self.wrapped, name)
        assert isinstance(value, Tensor)
        return value

    def adapted(self, name: str) -> Tensor:
        """Return the weight (*weight) or the bias (o,) with the change that the adapter makes now.

        Raises:
            ValueError: There is no such single tensor, or the adapter also changes a bias that the base does not have.
        """
        stored = self.stored(name)
        if name == "bias":
            change = self.bias_change()
        else:
            change = self.weight_change()
            if getattr(self.wrapped, "bias", None) is None and self.bias_change() is not None:
                raise self.cannot_be_read("finds no bias in this layer, to which the adapter adds one")
        return stored if change is None else (stored.to(change.dtype) + change).to(stored.dtype)

    def cannot_be_read(self, what: str) -> ValueError:
        """Return the error for a model that reads the weight or the bias where that cannot be right.

        Args:
            what: What the model does with it.
        """
        return ValueError(
            f"target {self.path_of_target!r}: the model reads the weight of this layer itself and {what}; leave the "
            f"target out, exclude=[{self.path_of_target!r}]"
        )

    @property
    def weight(self) -> Tensor:
        """W + Delta W (*weight); not computed before somebody computes with it, unless the model is known to do so."""
        return self._read("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias with its change (o,); None if the base has none."""
        bias: Tensor | None = getattr(self.wrapped, "bias", None)
        return bias if bias is None or not self.changes_bias else self._read("bias")

    def _read(self, name: str) -> Tensor:
        is_compiling = torch.compiler.is_compiling()
        if self.is_computed_with or (is_compiling and self.has_one_weight()):  # a compiler removes what nobody uses
            return self.adapted(name)
        # A compiler cannot trace an `AdaptedTensor`.
        return cast(Tensor, LookedAt.of(self.stored(name))) if is_compiling else AdaptedTensor(self, name)

    def __getattr__(self, name: str) -> Any:
        """Return what `nn.Module` finds, and otherwise the base's attribute of that name."""
        modules = self.__dict__.get("_modules", {})  # not yet there while a copy is made
        if name in modules:  # first, since layers read their base so
            return modules[name]
        for kind in ("_parameters", "_buffers"):
            if name in self.__dict__.get(kind, {}):
                return self.__dict__[kind][name]
        base = modules.get("base", modules.get("base_layer"))
        if base is not None and _is_known_of_base(base, name):
            return getattr(base, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _is_known_of_base(base: nn.Module, name: str) -> bool:
    """Whether an attribute of the base is also right for the adapted layer: a setting, a buffer, a method of settings.

    Parameters and modules are a part of how the base computes its weight, and other methods would run without the
    adapter.
    """
    if name.startswith("_") or name in base._parameters or name in base._modules or not hasattr(base, name):
        return False
    value = getattr(base, name)
    return not isinstance(value, MethodType) or runs_without_tensors(type(base), name)
