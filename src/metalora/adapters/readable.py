"""Whether Python can look at the numbers of a tensor."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def is_readable(tensor: Tensor) -> bool:
    """Return True if a check may look at the numbers of a tensor.

    A tensor on the meta device and a fake tensor have a shape and no numbers, and under torch.compile a look would
    break the graph.

    Args:
        tensor: A tensor of any shape.

    Example:
        >>> is_readable(torch.zeros(2)), is_readable(torch.zeros(2, device="meta"))
        (True, False)
    """
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))
