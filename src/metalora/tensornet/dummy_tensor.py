"""The dummy tensor, which writes a convolution as a tensor network (MetaLoRA, arXiv:2504.00460, eq. 2, Fig. 2)."""

import torch
from torch import Tensor


def dummy_tensor(
    length: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the binary tensor P of a convolution along one axis.

    y[j'] = Σ_j Σ_k P[j, j', k] a[j] b[k]   (eq. 2)

    P[j, j', k] = 1 if j = s j' + k - p, and 0 otherwise; s is the stride and p the padding. With a dilation d, which
    the paper does not have, the condition is j = s j' + d k - p. A convolution of images has one dummy tensor for its
    height and one for its width (Fig. 2).

    Args:
        length: Positions of the input, the size α of j.
        kernel_size: Positions of the kernel, the size β of k.
        stride: The stride s.
        padding: The number p of zeros before and after the input.
        dilation: The distance d between neighbours of the kernel.
        dtype: Data type of the result; None: torch's default.

    Returns:
        P (length, positions of the output, kernel_size).

    Raises:
        ValueError: A size, stride or dilation below 1, a padding below 0, or a kernel that is longer than the padded
            input.

    Example:
        >>> signal, kernel = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 10.0])
        >>> P = dummy_tensor(4, 2)
        >>> P.shape, torch.einsum("jyk,j,k->y", P, signal, kernel)
        (torch.Size([4, 3, 2]), tensor([21., 32., 43.]))
    """
    sizes = {"length": length, "kernel_size": kernel_size, "stride": stride, "dilation": dilation}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"dummy_tensor: {name} is {size}, expected at least 1")
    if padding < 0:
        raise ValueError(f"dummy_tensor: padding is {padding}, expected at least 0")
    reach = dilation * (kernel_size - 1) + 1
    if reach > length + 2 * padding:
        raise ValueError(f"dummy_tensor: the kernel reaches over {reach} of {length + 2 * padding} padded positions")
    outputs = (length + 2 * padding - reach) // stride + 1
    j = torch.arange(length)[:, None, None]
    j_out = torch.arange(outputs)[None, :, None]
    k = torch.arange(kernel_size)
    return (j == stride * j_out + dilation * k - padding).to(dtype or torch.get_default_dtype())
