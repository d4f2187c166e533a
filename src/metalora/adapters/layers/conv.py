"""Adapted convolutions: Left is a convolution of the base's stride, padding and dilation to k channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.fused import InplaceChannelsAdd, add_channels_, inplace_low_rank_add
from metalora.adapters.layers.mixed import MixedChannelsAdd, add_mixed_channels_

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class AdaptedConv(AdaptedLayer):
    """torch.nn.Conv1d and Conv2d; the hidden activation is (b, k, *positions).

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, stride=2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="0"))
        >>> model[0].left(None).shape, model[0].up(None).shape
        (torch.Size([2, 3, 5, 5]), torch.Size([2, 6]))
        >>> model(torch.rand(1, 3, 9, 9)).shape
        torch.Size([1, 6, 3, 3])
    """

    channels = 1
    gate_by_gate = False

    def as_batch(self, x: Tensor, conditions: int) -> tuple[Tensor, bool]:
        """Give an input (i, *positions) a batch axis, (1, i, *positions); True if it had none."""
        unbatched = x.ndim == 1 + len(self.base.kernel_size)
        return (x[None] if unbatched else x), unbatched

    def examples(self, x: Tensor) -> int:
        """Return b of an input (b, i, *positions)."""
        return x.shape[0]

    def can_fuse(self, x: Tensor, grad: bool) -> bool:
        """Return True for every input (b, i, *positions): the base runs itself, only the addition is shared."""
        return True

    def fused(self, x: Tensor, down: Tensor | None, hidden: Tensor | None, up: Tensor) -> tuple[Tensor, Tensor]:
        """Compute (b, i, *positions) -> (b, o, *positions); x Left comes as (b, k, *positions)."""
        y = self.base(x)
        if down is not None:
            hidden = self.convolve(x.to(y.dtype), down.to(y.dtype))
        assert hidden is not None, "either Left or x Left is given"
        up = up.to(y.dtype)
        if _can_add_channels(y, hidden, len(up)):
            return (InplaceChannelsAdd.apply if torch.is_grad_enabled() else add_channels_)(y, hidden, up), hidden
        return self.add_in_place(y, self.tokens_first(hidden, x), up, x), hidden

    def can_mix_in_place(self, y: Tensor, hidden: Tensor) -> bool:
        """Return True for pictures with the channels first that are not tiny."""
        return _can_add_channels(y, hidden, self.form.left_rank)

    def mix_in_place(self, y: Tensor, hidden: Tensor, mid: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """Write (hidden Mid) Right into y (b, o, *positions), for hidden (b, k, *positions)."""
        operands = y, hidden, mid.to(y.dtype), right.to(y.dtype)
        return (MixedChannelsAdd.apply if torch.is_grad_enabled() else add_mixed_channels_)(*operands)

    def base_and_hidden(self, x: Tensor, down: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return base(x) (b, o, *positions), and x Left (b, k, *positions)."""
        y = self.base(x)
        return y, None if down is None else self.convolve(x.to(y.dtype), down.to(y.dtype))

    def add_in_place(self, y: Tensor, h: Tensor, up: Tensor, x: Tensor) -> Tensor:
        """Write h Right into y (b, o, *positions), for h (b, t, k)."""
        if torch.is_grad_enabled() and y._is_view():
            y = y.clone()  # autograd takes no in-place product on a view
        return inplace_low_rank_add(y, h, up.to(y.dtype), self.channels)

    def hidden(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left, (b, k, *positions), from x (b, i, *positions of the input)."""
        spatial = len(self.base.kernel_size)
        kernel = kernel.flatten(int(self.form.left_batched), -2 - spatial)  # (b?, k, i, *kernel)
        return self.convolve(x, kernel)

    def convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute x Left with the stride, padding and dilation of the base.

        Args:
            x: Input (b, i, *positions of the input).
            kernel: Left (k, i, *kernel) or (b, k, i, *kernel).

        Returns:
            (b, k, *positions of the output).
        """
        base, spatial = self.base, len(self.base.kernel_size)
        padding = base.padding
        if base.padding_mode != "zeros":  # the functions of torch pad with zeros only; this is what _conv_forward does
            x, padding = F.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
        conv = F.conv2d if spatial == 2 else F.conv1d
        if kernel.ndim == 2 + spatial:
            if base.weight.ndim == 4 and base.weight.is_contiguous(memory_format=torch.channels_last):
                # Left in the memory format of the base's weight, so that torch runs both convolutions in one format.
                kernel = kernel.contiguous(memory_format=torch.channels_last)
            return conv(x, kernel, None, base.stride, padding, base.dilation)
        b = x.shape[0]  # one grouped convolution applies a kernel of its own to every example
        if b == 0:  # torch has no convolution of zero groups
            return conv(x, kernel.sum(0), None, base.stride, padding, base.dilation)
        kernel = kernel.expand(b, *kernel.shape[1:]).flatten(0, 1)  # (b k, i, *kernel)
        one_picture = x.reshape(1, -1, *x.shape[2:])  # (1, b i, *positions of the input)
        h = conv(one_picture, kernel, None, base.stride, padding, base.dilation, groups=b)  # (1, b k, *positions)
        return h.reshape(b, -1, *h.shape[2:])

    def through(self, x: Tensor, values: Values | None, repeat: int, dtype: torch.dtype) -> Tensor:
        """Convolve x (b, i, *positions of the input) with the kernel that the circuit forms: (b, o, *positions)."""
        return self.hidden(x.to(dtype), self.left_kernel(values, repeat).to(dtype))

    def tokens_first(self, h: Tensor, x: Tensor) -> Tensor:
        """Bring (b, k, *positions) to (b, t, k)."""
        return h.flatten(2).mT

    def channels_first(self, h: Tensor) -> Tensor:
        """Bring (b, t, k) to (b, k, t), or for a 2-D convolution to (b, k, t, 1), a picture one pixel wide."""
        return h.mT if len(self.base.kernel_size) == 1 else h.mT[..., None]

    def expand(self, h: Tensor, up: Tensor) -> Tensor:
        """Compute h Right from h (b, k, *positions): (b, o, *positions) or (b, o, t), which `restore` takes alike."""
        if up.ndim == 2 and h.stride(1) == 1:  # channels last: one product over all positions beats a 1 x 1 convolution
            return F.linear(h.movedim(1, -1), up.mT).movedim(-1, 1)
        return up.mT @ h.flatten(2)  # (b, o, t)

    def restore(self, out: Tensor, like: Tensor) -> Tensor:
        """Bring (b, o, t) or (b, o, *positions) to the shape (b, o, *positions) of `like`."""
        return out.reshape(like.shape)

    def to_base_layout(self, dense: Tensor) -> Tensor:
        """Bring (b, i, *kernel, o) to (b, o, i, *kernel)."""
        return dense.movedim(-1, 1)

    def add_product(self, weight: Tensor, left: Tensor, up: Tensor) -> Tensor:
        """Compute W + Right' Left, (o, i, *kernel)."""
        return torch.addmm(weight.flatten(1), up.mT, left).view_as(weight)

    def apply_weight(self, x: Tensor, weight: Tensor) -> Tensor:
        """Run the base's forward with another W (o, i, *kernel): (b, i, *positions) -> (b, o, *positions)."""
        return self.base._conv_forward(x, weight, self.base.bias)


def _has_channels_first(picture: Tensor) -> bool:
    """Return True for a batch of pictures (b, c, *positions) that autograd lets be written to as it is."""
    return len(picture) > 0 and picture.is_contiguous() and not picture._is_view()


def _can_add_channels(y: Tensor, hidden: Tensor, rank: int) -> bool:
    """Return True if one product for each picture adds an update of this rank; for few pixels it would be slower."""
    return _has_channels_first(y) and _has_channels_first(hidden) and hidden.shape[2:].numel() >= rank
