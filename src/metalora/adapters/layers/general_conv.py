"""Adapted convolutions of every other geometry: grouped and depthwise, transposed, and of three axes.

Legend: b batch · g groups · t position · k rank of the form · i inputs of one group · o channels out, of all groups.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch.nn.functional as F
from torch import Tensor

from metalora.adapters.convolutions import POSITION_AXES, TRANSPOSED_CONVOLUTIONS
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.weight_layout import as_stored, by_group

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}  # number of the axes of positions -> function
CONVOLVE_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class AdaptedGeneralConv(AdaptedLayer):
    """Delta W (o, i, *kernel) = Right' Left: every group has the same Left, and its own outputs of Right.

    So x Left has k channels for each group, (b, g k, *positions), from the base's convolution with Left in every
    group. If that costs more than the convolution with Delta W, which it does for a depthwise one, Delta W is formed.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(6, 4, 3, groups=2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model[0].left(None).shape, model[0].up(None).shape, model[0].delta(None).shape
        (torch.Size([2, 3, 3, 3]), torch.Size([2, 4]), torch.Size([4, 3, 3, 3]))
        >>> model(torch.rand(1, 6, 9, 9)).shape
        torch.Size([1, 4, 7, 7])
    """

    channels = 1
    gate_by_gate = False

    @property
    def groups(self) -> int:
        """g, the groups of the base."""
        return self.target.groups

    # ---- the convolution of the base -------------------------------------------------------------------------------
    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Convolve with the geometry of the base, without a bias.

        Args:
            x: Input (b, g i, *positions of the input).
            kernel: Weights by their outputs, (g c, i, *kernel), or (b, g c, i, *kernel) of every example.

        Returns:
            (b, g c, *positions of the output).
        """
        shape = self.base.weight.shape
        if kernel.ndim == len(shape):
            return self._run(x, as_stored(kernel[None], self.target, shape)[0], None, self.groups)
        b = x.shape[0]
        if b == 0:  # torch has no convolution of zero groups
            return self._run(x, as_stored(kernel, self.target, shape).sum(0), None, self.groups)
        kernel = as_stored(kernel.expand(b, *kernel.shape[1:]), self.target, shape).flatten(0, 1)
        one_picture = x.reshape(1, -1, *x.shape[2:])  # (1, b g i, *positions): the examples are groups of one picture
        h = self._run(one_picture, kernel, None, b * self.groups)
        return h.reshape(b, -1, *h.shape[2:])

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        """Convolve x (b, channels, *positions) with a weight as torch stores it, for a number of groups."""
        base, axes = cast(Any, self.base), POSITION_AXES[self.target.kind]
        if self.target.kind in TRANSPOSED_CONVOLUTIONS:
            geometry = (base.stride, base.padding, base.output_padding, groups, base.dilation)
            return CONVOLVE_TRANSPOSED[axes](x, weight, bias, *geometry)
        padding = base.padding
        if base.padding_mode != "zeros":  # the functions of torch pad with zeros only
            x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
        return CONVOLVE[axes](x, weight, bias, base.stride, padding, base.dilation, groups)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run the base's forward with another W (*weight): (b, g i, *positions) -> (b, o, *positions)."""
        return self._run(x, weight, self.base.bias, self.groups)

    # ---- x Left, and Right -----------------------------------------------------------------------------------------
    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left, (b, g k, *positions), from x (b, g i, *positions of the input)."""
        bonds, lead = len(self.form.left_shape), int(self.form.left_batched)
        kernel = kernel.flatten(lead, lead + bonds - 1)  # (b?, k, i, *kernel)
        repeats = [1] * kernel.ndim
        repeats[lead] = self.groups
        return self.convolve(x, self._whole_kernel(kernel.repeat(repeats), lead))

    def _whole_kernel(self, kernel: Tensor, lead: int) -> Tensor:
        """Give a kernel (b?, c, i, kh, kw) all axes of the base's."""
        return kernel.reshape(*kernel.shape[: lead + 2], *self.base.kernel_size)

    def as_kernel(self, left: Tensor) -> Tensor:
        """Give Left (k, i, kh, kw) the axes of the base's kernel."""
        return self._whole_kernel(left, 0)

    def tokens_first(self, h: Tensor, x: Tensor) -> Tensor:
        """Bring (b, g k, *positions) to (b, g t, k): every group has its own positions."""
        return by_group(h.flatten(2), 1, self.groups).mT.flatten(1, 2)

    def channels_first(self, h: Tensor) -> Tensor:
        """Bring (b, g t, k) to (b, g k, t)."""
        return by_group(h, 1, self.groups).mT.flatten(1, 2)

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """Compute h Right from h (b, g k, *positions): (b, o, t)."""
        hidden = by_group(h.flatten(2), 1, self.groups)  # (b, g, k, t)
        rights = by_group(up.mT, up.ndim - 2, self.groups)  # (b?, g, o / g, k)
        return (rights @ hidden).flatten(1, 2)

    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Bring (b, o, t) or (b, o, *positions) to the shape (b, o, *positions) of `like`."""
        return out.reshape(like.shape)

    def through(self, x: Tensor, values: Values | None, repeat: int, dtype: Any) -> Tensor:
        """Convolve x (b, g i, *positions of the input) with the kernel that the circuit forms: (b, o, *positions)."""
        kernel, lead = self.left_kernel(values, repeat).to(dtype), int(self.form.left_batched)
        kernel = kernel.flatten(lead, lead + len(self.form.left_shape) - 1)  # (b?, o, i, *kernel)
        return self.convolve(x.to(dtype), self._whole_kernel(kernel, lead))

    def dense_update(self, x: Tensor, y: Tensor, values: Values | None, conditions: int) -> Tensor | None:
        """Convolve x with Delta W (b, o, *positions), if this costs less than x Left; None otherwise."""
        adapter = self.owner[0]
        drops = adapter.training and adapter.dropout  # dropout acts on x Left
        if conditions != 1 or drops or self.bound.macs_per_position <= self.bound.base_macs:
            return None
        delta = self.dense(self.bound.read(values))[0].to(y.dtype)
        return self._run(x.to(y.dtype), delta, None, self.groups)

    # ---- layouts ---------------------------------------------------------------------------------------------------
    def as_batch(self, x: Tensor, conditions: int) -> tuple[Tensor, bool]:
        """Give an input (g i, *positions) a batch axis, (1, g i, *positions); True if it had none."""
        unbatched = x.ndim == 1 + len(self.base.kernel_size)
        return (x[None] if unbatched else x), unbatched

    def examples(self, x: Tensor) -> int:
        """Return b of an input (b, g i, *positions)."""
        return x.shape[0]

    def positions(self, x: Tensor) -> int:
        """Return the number of positions of all examples: of the output, or of a transposed one's input."""
        positions = x.numel() // (self.groups * self.target.sizes["in"])
        transposed = self.target.kind in TRANSPOSED_CONVOLUTIONS
        return positions if transposed else positions // prod(self.base.stride)

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Bring (b, i, kh, kw, o) to (b, *weight)."""
        return as_stored(dense.movedim(-1, 1), self.target, self.base.weight.shape)

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + Right' Left, (*weight)."""
        dense = (up.mT @ left).reshape(len(up.mT), -1, *self.base.kernel_size)  # (o, i, *kernel)
        return weight + as_stored(dense[None], self.target, weight.shape)[0]

    # ---- fused kernels, which only the plain convolutions have -----------------------------------------------------
    def can_fuse(self, x: Tensor, grad: bool) -> bool:
        """Return False for every input (b, g i, *positions)."""
        return False

    def fused(self, x: Tensor, down: Tensor | None, hidden: Tensor | None, up: Tensor) -> NoReturn:
        """Never run, whatever the input (b, g i, *positions)."""
        raise AssertionError("a kernel for plain convolutions")

    def base_and_hidden(self, x: Tensor, down: Tensor | None) -> NoReturn:
        """Never run, whatever the input (b, g i, *positions)."""
        raise AssertionError("a kernel for plain convolutions")

    def add_in_place(self, y: Tensor, h: Tensor, up: Tensor, x: Tensor) -> NoReturn:
        """Never run, whatever the output (b, o, *positions)."""
        raise AssertionError("a kernel for plain convolutions")
