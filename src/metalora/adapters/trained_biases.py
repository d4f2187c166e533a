"""Biases of the base that are trained along: the adapter has the change of each, and the base keeps its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from metalora.adapters.bit_hash import bit_hash
from metalora.adapters.path_index import matches
from metalora.adapters.rounded_sum import rounded_sum
from metalora.config import AdapterConfig

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

CHANNELS_LAST: tuple[type[nn.Module], ...] = (nn.Linear, nn.LayerNorm)
CHANNELS_FIRST: tuple[type[nn.Module], ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.GroupNorm,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


def bias_shapes(model: nn.Module, config: AdapterConfig, bases: Mapping[str, nn.Module]) -> dict[str, torch.Size]:
    """Return the biases that are trained along: path of a layer -> shape of its bias.

    Args:
        model: The model, without an adapter.
        config: The configuration; `bias` says which biases, and `exclude` leaves layers out.
        bases: Path -> layer, of the targets.

    Raises:
        ValueError: There is no such bias, or a layer that is no target uses a bias in another way than adding it to
            its output.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
        >>> bias_shapes(model, AdapterConfig(bias="all"), {"0": model[0], "2": model[2]})
        {'0': torch.Size([4]), '1': torch.Size([4])}
    """
    if config.bias == "none":
        return {}
    biases = {path: getattr(base, "bias", None) for path, base in bases.items()}
    if config.bias == "all":
        for path, module in model.named_modules():
            excluded = any(matches(path, pattern) for pattern in config.exclude)
            if path not in bases and not excluded and _adds_bias(path, module):
                biases[path] = module.bias
    shapes = {path: bias.shape for path, bias in biases.items() if isinstance(bias, Tensor)}
    if not shapes:
        raise ValueError(f"bias={config.bias!r}: no layer of the adapter has a bias, so there is none to train")
    return shapes


def _adds_bias(path: str, module: nn.Module) -> bool:
    """Whether a layer has a bias that it adds to its output; ValueError if it uses one in another way."""
    names = [name for name, _ in module.named_parameters(recurse=False) if "bias" in name]
    if not names:
        return False
    # A subclass may have a forward of its own, which does more after it has added its bias.
    is_plain = any(type(module).forward is plain.forward for plain in (*CHANNELS_LAST, *CHANNELS_FIRST))
    if names != ["bias"] or not (is_plain or _is_conv1d_of_gpt2(module)):
        raise ValueError(
            f"bias='all': {path!r}, a {type(module).__name__}, may do more with {names[0]!r} than add it to its "
            "output; name it in exclude, or take bias='adapted'"
        )
    return True


def _is_conv1d_of_gpt2(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


class OutsideBias:
    """Adds the change of the bias of a layer that is no target to its output; a forward hook.

    Args:
        adapter: Owner of the change.
        path: Path of the layer.
        module: The layer.
    """

    def __init__(self, adapter: Adapter, path: str, module: nn.Module):
        self.owner, self.path, self.module = (adapter,), path, module
        self.original: Tensor | None = None  # the layer's bias while merged
        self.written: int | None = None  # the hash of the bias that a merge has written

    @property
    def change(self) -> Tensor:
        """The change of the bias, in its shape."""
        return self.owner[0].bias_changes[self.path]

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        """Return the output with the change, unless the adapter is off or merged."""
        if not self.owner[0].current().enabled or self.original is not None:
            return output
        change = self.change.to(output.dtype)
        if isinstance(module, _ConvNd):
            change = change.reshape(-1, *[1] * len(module.kernel_size))  # also right without a batch axis
        elif isinstance(module, (nn.GroupNorm, _NormBase)):
            change = change.reshape(-1, *[1] * (output.ndim - 2))
        return output + change

    def merged_bias(self) -> Tensor:
        """Return the layer's bias with the change, in its type; ValueError if it is not finite."""
        bias = self.module.bias
        assert isinstance(bias, Tensor)
        return rounded_sum(bias.data, self.change.data, f"the bias of {self.path!r}")

    def merge(self, merged: Tensor) -> None:
        """Put what `merged_bias` returned in the place of the layer's bias, whose bits are kept."""
        bias = self.module.bias
        assert isinstance(bias, Tensor)
        self.original = bias.detach().clone()
        bias.data.copy_(merged)
        self.written = bit_hash(bias)

    def changed_since_merge(self) -> bool:
        """Return True if the bias is no longer what a merge has written."""
        bias = self.module.bias
        return self.written is not None and isinstance(bias, Tensor) and bit_hash(bias) != self.written

    def unmerge(self) -> None:
        """Restore the layer's bias, bit for bit."""
        if self.original is not None:
            assert isinstance(self.module.bias, Tensor)
            self.module.bias.data.copy_(self.original)
            self.original = self.written = None
