"""Kinds of convolutions, and the sizes of the modes of their weights."""

from __future__ import annotations

from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

CLASSES: dict[str, type[_ConvNd]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
GROUPED = {"conv1d": "grouped_conv1d", "conv2d": "grouped_conv2d"}  # with groups > 1; other kinds have one name
CONVOLUTIONS = (*CLASSES, *GROUPED.values())
TRANSPOSED_CONVOLUTIONS = tuple(kind for kind in CLASSES if "transpose" in kind)  # their weight is (in, out / groups)
POSITION_AXES = {kind: int(kind[-2]) for kind in CONVOLUTIONS}  # kind -> number of the axes of positions


def kind_of_convolution(module: nn.Module) -> str | None:
    """Kind of a convolution; None for any other module.

    Example:
        >>> kind_of_convolution(nn.Conv2d(6, 6, 3)), kind_of_convolution(nn.Conv2d(6, 6, 3, groups=6))
        ('conv2d', 'grouped_conv2d')
        >>> kind_of_convolution(nn.ConvTranspose2d(6, 6, 3, groups=6))
        'conv_transpose2d'
    """
    for kind, convolution in CLASSES.items():
        if isinstance(module, convolution):
            return GROUPED.get(kind, kind) if module.groups > 1 else kind
    return None


def convolution_sizes(module: _ConvNd) -> dict[str, int]:
    """Sizes of the modes of a convolution: out, the inputs of one group, and kh and kw.

    The weight counts as the matrix of its outputs by the inputs of one output, as torch stores it without `transpose`.
    The kh of a kernel of three axes is depth times height.

    Example:
        >>> convolution_sizes(nn.Conv2d(6, 4, 5, groups=2))
        {'out': 4, 'in': 3, 'kh': 5, 'kw': 5}
        >>> convolution_sizes(nn.ConvTranspose3d(6, 4, (2, 3, 5)))
        {'out': 4, 'in': 6, 'kh': 6, 'kw': 5}
    """
    *heights, width = module.kernel_size
    sizes = {"out": module.out_channels, "in": module.in_channels // module.groups}
    return {**sizes, "kh": prod(heights), "kw": width} if heights else {**sizes, "kw": width}


def outputs_per_position(module: nn.Module) -> int:
    """Positions of the output for one of the input, of a transposed convolution; 1 for any other layer.

    Example:
        >>> outputs_per_position(nn.ConvTranspose2d(6, 4, 2, stride=2)), outputs_per_position(nn.Conv2d(6, 4, 2, 2))
        (4, 1)
    """
    return prod(module.stride) if isinstance(module, _ConvTransposeNd) else 1
