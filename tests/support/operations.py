"""What a computation asks of torch, counted."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Records the names of all operations that run inside of it, forward and backward."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def operations_of(run, *args, **kwargs) -> int:
    """The number of operations of one call."""
    with Operations() as operations:
        run(*args, **kwargs)
    return len(operations.names)
