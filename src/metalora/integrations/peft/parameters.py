"""PEFT's view of an adapted parameter (`target_parameters`): the module stays where it is, and sees W + Delta W."""

from __future__ import annotations

import warnings

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from metalora.adapters.held_matrix import HeldMatrix
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.mergeable import MergeableLayer
from metalora.adapters.substitution import SubstitutedParameter, adapted_parameter
from metalora.integrations.peft.container import AdapterContainer, TunerLayer


class AdaptedParameter(TunerLayer, SubstitutedParameter):
    """A parameter with the updates of every active adapter, while a module that reads it runs.

    It owns no factor: these are in the container.

    Args:
        holder: The module that has the parameter.
        name: Name of the parameter.
        container: The container of the model's adapters.

    Attributes:
        adapter_layers: Adapter name -> its layers, one for each matrix that it adapts.
        merged_adapters: Names of the adapters whose Delta W is in the parameter, in the order of merging.

    Example:
        >>> import peft, metalora.peft
        >>> base = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
        >>> config = metalora.peft.TensorNetworkConfig(target_modules=[], target_parameters=["in_proj_weight"], r=2)
        >>> model = peft.get_peft_model(base, config)
        >>> list(base[1].adapted_in_proj_weight.adapter_layers)
        ['default']
    """

    other_param_names = ("adapter_layers",)  # PEFT deletes an adapter from the dictionaries with these names

    def __init__(self, holder: nn.Module, name: str, container: AdapterContainer):
        SubstitutedParameter.__init__(self, holder, name)
        self.adapter_layers: dict[str, list[AdaptedLayer]] = {}
        self.merged_adapters: list[str] = []
        self.kept: tuple[Tensor, ...] = ()  # the parameter before any adapter was merged; a tuple hides it
        # A tuple hides the container from nn.Module, which would otherwise register it here.
        self._container = (container,)
        self._active_adapter = container.active_adapter

    @property
    def container(self) -> AdapterContainer:
        """The container that owns the factors."""
        return self._container[0]

    @property
    def parameter(self) -> Tensor:
        """The parameter itself, (out, in) or (matrices, out, in)."""
        return HeldMatrix(self._holder[0], self.name).parameter

    def layer_of(self, index: int | None) -> MergeableLayer | None:
        """Return the layer of a matrix; that of a merged adapter, if there is one, since it has the original."""
        layers = [layer for of_adapter in self.adapter_layers.values() for layer in of_adapter]
        of_matrix = [layer for layer in layers if isinstance(layer.base, HeldMatrix) and layer.base.index == index]
        return next((layer for layer in of_matrix if layer.original is not None), next(iter(of_matrix), None))

    def active_layers(self) -> list[list[MergeableLayer]]:
        """Return the layers of the active adapters; none if they are disabled or merged.

        Raises:
            ValueError: The call names an adapter for each example, or several adapters are active and one of them
                changes the weight in another way than by adding to it.
        """
        if self.disable_adapters and self.merged:  # as PEFT's own layers do
            self.unmerge()
        if self.disable_adapters or self.merged or self.container.is_base_only:
            return []
        if self.container.call.adapter_names is not None:
            raise ValueError(
                f"adapter_names: parameter {self.name!r} is adapted, and one weight serves all examples there; call "
                "the model once for each adapter"
            )
        layers = [self.adapter_layers[name] for name in self.active_adapters if name in self.adapter_layers]
        if len(layers) > 1 and any(_depends_on_weight(layer) for of_adapter in layers for layer in of_adapter):
            raise ValueError(
                f"parameter {self.name!r}: several adapters are active, and one of them scales the weight (as DoRA and "
                "IA3 do), so that their updates do not add up; activate one of them"
            )
        return [list(of_adapter) for of_adapter in layers]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add Delta W to the parameter; `unmerge` restores it bit for bit.

        Args:
            safe_merge: Raise an error, before the parameter is changed, if the merged one is not finite.
            adapter_names: The adapters to merge; None for the active ones.

        Raises:
            ValueError: `safe_merge` and the merged parameter is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name in self.adapter_layers:
                self._merge_adapter(name, safe_merge)

    def _merge_adapter(self, name: str, safe_merge: bool) -> None:
        layers, parameter = self.adapter_layers[name], self.parameter
        merged = adapted_parameter([layers])
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        if not self.kept:
            self.kept = (parameter.detach().clone(),)
        for layer in layers:
            layer.original = _matrix(self.kept[0], layer)
        parameter.data.copy_(merged)
        self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the parameter, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.parameter.data.copy_(self.kept[0])
        self.kept = ()
        for layers in self.adapter_layers.values():
            for layer in layers:
                layer.original = None
        self.merged_adapters.clear()


def _depends_on_weight(layer: AdaptedLayer) -> bool:
    """Return True if Delta W is computed from W, so that the updates of several adapters do not add up."""
    return not isinstance(layer, AdaptedLayer) or bool(layer.bound.rescalers)


def _matrix(parameter: Tensor, layer: AdaptedLayer) -> Tensor:
    """Return the matrix of a layer in a parameter, (out, in) or (in, out)."""
    assert isinstance(layer.base, HeldMatrix)
    return parameter if layer.base.index is None else parameter[layer.base.index]
