"""PEFT's view of an adapted layer: a base, and around it one layer of the core for each adapter."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.targets import Target
from metalora.integrations.peft.compat import resolve_quantization_backend


class TunerLayer(BaseTunerLayer):
    """What the tuner finds in a model as its own: adapted layers, and the bank of their factors."""


class AdaptedModule(TunerLayer, nn.Module):
    """y = base(x) + the update of every active adapter. It owns no parameter: the factors are in the bank."""

    other_param_names = ("cells",)

    def __init__(self, base: nn.Module, bank: nn.Module, target: Target):
        nn.Module.__init__(self)
        self.base_layer = base
        self.cells: dict[str, AdaptedLayer] = {}  # adapter name -> the core's layer around the same base
        self.merged_adapters: list[str] = []
        self.quantization_backend = resolve_quantization_backend(base)
        self.in_features, self.out_features = target.sizes["in"], target.sizes["out"]
        self._bank = (bank,)  # a tuple, so that the bank is registered once, in the model
        self._active_adapter = bank.active_adapter

    @property
    def original(self) -> Tensor | None:
        """The base's weight before any adapter was merged; None while none is."""
        return next((cell.original for cell in self.cells.values() if cell.original is not None), None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        bank = self._bank[0]
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged or bank.resting:
            return self.base_layer(x, *args, **kwargs)
        if bank.names is not None:
            return self._mixed(x, self.base_layer(x, *args, **kwargs))
        cells = [self.cells[name] for name in self.active_adapters if name in self.cells]
        known = args or kwargs or len(cells) != 1  # else the core may form W + Delta W
        y = self.base_layer(x, *args, **kwargs) if known else None
        for cell in cells:
            y = cell(x, y)
        return y

    def _mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Each example under the adapter that the batch names for it."""
        bank, y = self._bank[0], y.clone()
        for name, rows in bank.rows(len(x)).items():
            if name in self.cells:
                adapter = bank.metalora_adapters[name]
                values = None if adapter.active is None else _of_rows(adapter.active, rows.to(x.device), len(x))
                y[rows] = self.cells[name](x[rows], y[rows], values).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add Delta W, and biases, of the (active) adapters to the base's; the bits are kept for `unmerge`.

        safe_merge  ValueError for a Delta W that is not finite, before this layer is changed
        ValueError: an adapter whose Delta W differs by example or task, unless one condition is fixed; a method's bias
        that the base has none for.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.cells:
                continue
            adapter, cell, weight = self._bank[0].metalora_adapters[name], self.cells[name], self._weight()
            if adapter.per_example and (adapter.fixed is None or len(adapter.fixed) != 1):
                raise ValueError(
                    f"merge: adapter {name!r} takes {', '.join(adapter.per_example)} from a condition; fix one: "
                    f"metalora.peft.adapter_of(model, {name!r}).fix(condition)"
                )
            delta = adapter.delta(cell.target.path)
            shift = cell.bias_to_merge(adapter.fixed.values if adapter.per_example else None)
            merged = (weight.to(delta.dtype) + delta).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            cell.merge_bias(shift)
            cell.original = self._kept(weight) if self.original is None else self.original
            self._set_weight(merged)
            self.merged_adapters.append(name)

    def _weight(self) -> Tensor:
        backend = self.quantization_backend
        return self.base_layer.weight.data if backend is None else backend.get_base_weight(self.base_layer)

    def _set_weight(self, weight: Tensor) -> None:
        if self.quantization_backend is None:
            self.base_layer.weight.data = weight
        else:
            self.quantization_backend.set_base_weight(self, weight)

    def _kept(self, weight: Tensor) -> Tensor:
        """What restores the base's weight: a copy, or the very parameter where merging quantises to another."""
        return weight.clone() if self.quantization_backend is None else self.base_layer.weight

    def unmerge(self) -> None:
        """Restore the base's weight, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self.quantization_backend is None:
            self._set_weight(self.original.to(self.base_layer.weight.device))
        else:
            self.base_layer.weight = self.original
        for cell in [self.cells[name] for name in reversed(self.merged_adapters) if name in self.cells]:
            cell.original = None
            cell.unmerge_bias()  # each kept the bias that it found
        self.merged_adapters.clear()


class Linear(AdaptedModule):
    """`all-linear` knows tuners on linear layers by this name."""


KINDS = {"linear": Linear, "conv1d_gpt2": Linear}


def _of_rows(values: dict[str, Tensor], rows: Tensor, batch: int) -> dict[str, Tensor]:
    """Of values for a batch (or for as many examples as generate made it of) those of some rows."""
    return {
        key: value if len(value) == 1 else value.repeat_interleave(batch // len(value), 0)[rows]
        for key, value in values.items()
    }
