"""SHA-256 digests of tensors. Adapter files and caches hold them, so their bits must never change."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_digest(labelled: Iterable[tuple[str, Tensor]], prefix: str = "") -> str:
    """Return the SHA-256 of a text and of tensors with a label each.

    The digest is that of `prefix`, followed by the label and the raw bytes of every tensor in the order given.

    Args:
        labelled: Pairs of a label, which should hold whatever the raw bytes do not say (name, shape), and a tensor of
            any shape, dtype and device.
        prefix: A text that is hashed before the tensors.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> tensor_digest([(typed_label("weight", weight), weight)])[:16]
        '5019b95c18fbfc81'
    """
    digest = hashlib.sha256(prefix.encode())
    for label, tensor in labelled:
        digest.update(label.encode())
        digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def typed_label(name: str, tensor: Tensor) -> str:
    """Return a label that tells the name, the dtype and the shape of a tensor.

    Example:
        >>> typed_label("weight", torch.zeros(2, 3))
        'weight torch.float32 (2, 3)'
    """
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}"


def raw_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor of any shape, in row-major order and in the byte order of this machine."""
    contiguous = tensor.detach().cpu().contiguous()
    flat = contiguous.flatten().view(torch.uint8)  # numpy has no bfloat16, every dtype has bytes
    return flat.numpy().tobytes()
