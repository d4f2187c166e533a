"""PEFT's view of an adapted layer: the base, and one layer of this library around it for each adapter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.read_as_base import ReadAsBase
from metalora.adapters.merge import check_untied
from metalora.adapters.offloading import check_present
from metalora.adapters.own_forward import run_with
from metalora.adapters.targets import Target
from metalora.integrations.peft.compat import resolve_quantization_backend
from metalora.integrations.peft.container import AdapterContainer, TunerLayer, weight_of
from metalora.integrations.peft.peft_api import QuantizationBackend


class AdaptedModule(ReadAsBase, TunerLayer):
    """y = base(x) + the update of every active adapter.

    It owns no parameter: the factors are in the container.

    Args:
        base: The frozen layer.
        container: The container of the model's adapters.
        target: The base as a target.

    Attributes:
        adapter_layers: Adapter name -> the adapter's layer around the same base.
        merged_adapters: Names of the adapters whose Delta W is in the base's weight, in the order of merging.

    Example:
        >>> import peft, metalora.peft
        >>> base = nn.Sequential(nn.Linear(6, 4))
        >>> model = peft.get_peft_model(base, metalora.peft.LoTRConfig(r=2, target_modules=["0"]))
        >>> list(base[0].adapter_layers), base[0].base_layer
        (['default'], Linear(in_features=6, out_features=4, bias=True))
    """

    other_param_names = ("adapter_layers",)  # PEFT deletes an adapter from the dictionaries with these names

    def __init__(self, base: nn.Module, container: AdapterContainer, target: Target):
        nn.Module.__init__(self)
        self.base_layer = base
        self.adapter_layers: dict[str, AdaptedLayer] = {}
        self.merged_adapters: list[str] = []
        self.quantization_backend: QuantizationBackend | None = resolve_quantization_backend(base)
        self._path = target.path
        self._quantised_state: dict[str, Any] = {}  # the scales of an 8-bit weight, which bitsandbytes keeps apart
        self.in_features, self.out_features = target.groups * target.sizes["in"], target.sizes["out"]
        # A tuple hides the container from nn.Module, which would otherwise register it in every layer.
        self._container = (container,)
        self._active_adapter = container.active_adapter

    @property
    def container(self) -> AdapterContainer:
        """The container that owns the factors."""
        return self._container[0]

    @property
    def original(self) -> Tensor | None:
        """The base's weight (*weight) before any adapter was merged; None if none is merged."""
        for layer in self.adapter_layers.values():
            if layer.original is not None:
                return layer.original
        return None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the base and add the updates.

        Args:
            x: The base's input, `(batch, ..., in)` for a linear layer.
            *args: Further arguments of the base.
            **kwargs: Further arguments of the base.

        Returns:
            The adapted output, `(batch, ..., out)` for a linear layer.
        """
        if self.disable_adapters and self.merged:  # as PEFT's own layers do
            self.unmerge()
        if self.disable_adapters or self.merged or self.container.is_base_only:
            return self._base_output(x, *args, **kwargs)
        if self.container.call.adapter_names is not None:
            self._check_rows_can_be_mixed(args, kwargs)
            return self._mixed_batch(x, self._base_output(x, *args, **kwargs))
        layers = self._active_layers()
        if len(layers) == 1:
            # The layer runs the base itself, so that base and update can share their passes.
            adapted: Tensor = layers[0](x, *args, **kwargs)
            return adapted
        if any(layer.runs_whole for layer in layers):
            names = [name for name in ("weight", "bias") if getattr(self.base_layer, name, None) is not None]
            tensors = {name: self.adapted(name) for name in names}
            whole: Tensor = run_with(self.base_layer, tensors, x, *args, **kwargs)
            return whole
        y = self._base_output(x, *args, **kwargs)
        for layer in layers:
            y = layer.add_update(x, y)
        return y

    def _active_layers(self) -> list[AdaptedLayer]:
        return [self.adapter_layers[name] for name in self.active_adapters if name in self.adapter_layers]

    def _check_rows_can_be_mixed(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise a ValueError if a base that runs as a whole has further arguments: they are not cut into rows."""
        if (args or kwargs) and any(layer.runs_whole for layer in self.adapter_layers.values()):
            raise ValueError(
                f"target {self.path_of_target!r}: {type(self.base_layer).__name__} is called with more than its input, "
                "so it cannot run with an adapter for each example (adapter_names)"
            )

    # ---- what a model reads ----------------------------------------------------------------------------------------
    @property
    def wrapped(self) -> nn.Module:
        """The base."""
        return self.base_layer

    @property
    def path_of_target(self) -> str:
        """Path of the layer, for messages."""
        return self._path

    @property
    def weight(self) -> Tensor:
        """W + the Delta W of all active adapters (*weight); of a quantised base its own weight, as it is stored."""
        if self.quantization_backend is None:
            return super().weight
        packed: Tensor | None = getattr(self.base_layer, "qweight", None)
        return weight_of(self.base_layer) if packed is None else packed

    def has_one_weight(self) -> bool:
        """Return True if one W + Delta W is all that the active adapters do now."""
        if self.container.call.adapter_names is not None:
            return False
        return all(layer.has_one_weight() for layer in self._acting_layers())

    @property
    def changes_bias(self) -> bool:
        """True if an adapter may change the bias."""
        return any(layer.changes_bias for layer in self.adapter_layers.values())

    def weight_change(self) -> Tensor | None:
        """Return the sum of the Delta W of the active adapters (*weight); None if none acts now.

        Raises:
            ValueError: A Delta W differs by example, or the call has an adapter for each example.
        """
        return _total([layer.weight_change() for layer in self._acting_layers()])

    def bias_change(self) -> Tensor | None:
        """Return the sum of the changes of the bias (o,); None if there is none.

        Raises:
            ValueError: A change differs by example, or the call has an adapter for each example.
        """
        return _total([layer.bias_change() for layer in self._acting_layers()])

    def _acting_layers(self) -> list[AdaptedLayer]:
        """The layers that act now: none of them if the base runs alone or is merged."""
        if self.disable_adapters or self.merged or self.container.is_base_only:
            return []
        if self.container.call.adapter_names is not None:
            raise self.cannot_be_read("computes with it, while each example has an adapter of its own (adapter_names)")
        return self._active_layers()

    def _base_output(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.base_layer(x, *args, **kwargs)
        return y

    def _mixed_batch(self, x: Tensor, y: Tensor) -> Tensor:
        """Add to each example of base(x) the update of the adapter that the call names for it.

        Args:
            x: The base's input, `(batch, ...)`.
            y: base(x), `(batch, ...)`.

        Returns:
            The adapted output, in the shape of y.

        Raises:
            ValueError: The base returns more than a tensor.
        """
        if not isinstance(y, Tensor):
            raise ValueError(
                f"target {self.path_of_target!r}: {type(self.base_layer).__name__} returns more than one tensor, so it "
                "cannot run with an adapter for each example (adapter_names)"
            )
        batch_size = x.shape[0]
        y = y.clone()  # its rows are overwritten, and autograd may need the base's output
        for name, rows in self.container.rows_by_adapter(batch_size, x.device).items():
            layer = self.adapter_layers.get(name)
            if layer is None:
                continue
            active_values = self.container.adapters_by_name()[name].current().values
            values = None if active_values is None else _values_of_rows(active_values, rows, batch_size)
            y[rows] = layer.add_update(x[rows], y[rows], values).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add Delta W, and a method's bias, to the base's weight and bias; `unmerge` restores them bit for bit.

        Args:
            safe_merge: Raise an error, before this layer is changed, if the merged weight is not finite.
            adapter_names: The adapters to merge; None for the active ones.

        Raises:
            ValueError: Delta W differs by example or task and no single condition is fixed; the weight of a target is
                another module's too, which would change with it; the method has a bias and the base has none;
                `safe_merge` and the merged weight is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.adapter_layers:
                self._merge_adapter(name, safe_merge)

    def _merge_adapter(self, name: str, safe_merge: bool) -> None:
        adapter, layer = self.container.adapters_by_name()[name], self.adapter_layers[name]
        _check_one_condition(name, adapter)
        check_untied(adapter, "merge")
        check_present(self.base_layer, f"merge: target {layer.target.path!r}")
        weight = self._dense_weight()
        delta = adapter.delta(layer.target.path)
        values = adapter.fixed_condition.values if adapter.per_example and adapter.fixed_condition is not None else None
        bias = layer.merged_bias(values)
        # W + Delta W is rounded once: a Delta W that is rounded to the weight's 16 bits before would lose digits.
        merged = (weight.to(delta.dtype) + delta).to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        layer.merge_bias(bias)
        # All merged adapters hold the same copy, so that it stays if some of them are deleted.
        layer.original = self._backup(weight) if self.original is None else self.original
        self._set_weight(merged)
        self.merged_adapters.append(name)

    def _dense_weight(self) -> Tensor:
        """The base's weight as floating-point numbers."""
        if self.quantization_backend is None:
            return weight_of(self.base_layer).data
        return self.quantization_backend.get_base_weight(self.base_layer)

    def _set_weight(self, weight: Tensor) -> None:
        if self.quantization_backend is None:
            weight_of(self.base_layer).data = weight
        else:
            self.quantization_backend.set_base_weight(self, weight)

    def _backup(self, weight: Tensor) -> Tensor:
        """What restores the base's weight: a copy; for a quantised base its parameter, which merging replaces."""
        if self.quantization_backend is None:
            return weight.clone()
        self._quantised_state = dict(vars(self.base_layer.state)) if hasattr(self.base_layer, "state") else {}
        return weight_of(self.base_layer)

    def unmerge(self) -> None:
        """Restore the base's weight and bias, bit for bit.

        Raises:
            ValueError: All merged adapters were deleted.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        original = self.original
        if original is None:
            raise ValueError(
                f"unmerge: the merged adapters {', '.join(self.merged_adapters)} were deleted, and the base's weight "
                "with them; unmerge before you delete an adapter"
            )
        if self.quantization_backend is None:
            self._set_weight(original.to(weight_of(self.base_layer).device))
        else:
            self.base_layer.weight = original
            if self._quantised_state:
                vars(self.base_layer.state).update(self._quantised_state)
        # Each layer kept the bias that it found, so the first one, restored last, has the base's own.
        for name in reversed(self.merged_adapters):
            if name in self.adapter_layers:
                self.adapter_layers[name].original = None
                self.adapter_layers[name].unmerge_bias()
        self.merged_adapters.clear()


class Linear(AdaptedModule):
    """An adapted linear layer. PEFT's `all-linear` recognises the linear layers of tuners by this class name."""


LAYER_CLASSES: dict[str, type[AdaptedModule]] = {"linear": Linear, "conv1d_gpt2": Linear}
"""Kind of a target -> the class of its layer, if that is not `AdaptedModule`."""


def _total(changes: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of changes of one shape, without those that are None."""
    present = [change for change in changes if change is not None]
    return sum(present[1:], present[0]) if present else None


def _check_one_condition(name: str, adapter: Adapter) -> None:
    """Raise a ValueError if Delta W of an adapter differs by example, and no single condition is fixed."""
    if adapter.per_example and (adapter.fixed_condition is None or len(adapter.fixed_condition) != 1):
        raise ValueError(
            f"merge: adapter {name!r} takes {', '.join(adapter.per_example)} from a condition; fix one: "
            f"metalora.peft.adapter_of(model, {name!r}).fix(condition)"
        )


def _values_of_rows(values: Mapping[str, Tensor], rows: Tensor, batch_size: int) -> dict[str, Tensor]:
    """Select the values of some rows of a batch.

    Args:
        values: Factor key -> value, `(n, ...)` with n = 1, the examples, or the batch size. `generate` runs several
            rows per example, next to each other, and the values of an example serve all of them.
        rows: Indices of the rows, `(rows,)`.
        batch_size: Rows of the whole batch.

    Returns:
        Factor key -> value, `(1, ...)` or `(rows, ...)`.
    """
    selected = {}
    for key, value in values.items():
        if len(value) == 1:
            selected[key] = value
        else:
            selected[key] = value.repeat_interleave(batch_size // len(value), 0)[rows]  # (rows, ...)
    return selected
