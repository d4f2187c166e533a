"""A second device, "card", for tests without a GPU: the numbers of its tensors lie in the memory of the CPU.

`install()` adds it to torch for the rest of the process, which cannot be undone, so tests run it in a process of its
own: `support.second_device_process`.

It refuses what CUDA refuses:

- tensors of two devices in one operation, except where CUDA moves one of them itself: a CPU tensor without axes beside
  others, and an index on the CPU;
- `numpy()` and `numpy.asarray` of a tensor on the device;
- a generator of random numbers of another device than the numbers.

It counts where the program waits for the device, as CUDA's `set_sync_debug_mode` does: numbers that are read
(`.item()`, `.tolist()`, `bool`, a copy to the CPU), blocking copies to the device, results whose shape depends on
numbers (`nonzero`, a mask as an index), and decompositions that check whether they succeeded.

It cannot tell how fast anything is, which kernels CUDA lacks, which data types CUDA refuses, or what code does that
asks for "cuda" by name. Under autocast, products are computed in the lower precision, and the rest as it comes.
"""

import sys
import threading
from contextlib import contextmanager

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CARD = "card"  # its name; `torch.device(CARD)` exists only where `install` has run
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {
    aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default,
    aten._index_put_impl_.default, aten._unsafe_index_put.default,
}  # fmt: skip
# Operations to which a CPU tensor without axes is no number, but a tensor of another device.
WITHOUT_NUMBERS = {"stack", "cat", "gather", "scatter", "scatter_add", "index_add", "index_copy", "index_select"}
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "bincount",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd",
    "_linalg_eigvals", "linalg_eig", "linalg_lstsq", "linalg_eigvals",
}  # fmt: skip
PRODUCTS = (
    aten.linear.default, aten.matmul.default, aten.mm.default, aten.mv.default, aten.bmm.default, aten.addmm.default,
    aten.addmv.default, aten.baddbmm.default, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.convolution.default, aten.scaled_dot_product_attention.default,
)  # fmt: skip

_counters: list[list[str]] = []
_libraries: list[torch.library.Library] = []


def why_missing():
    """Return why this version of torch cannot have the device, or None."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return "this torch cannot have a device that is written in Python"
    return None


def install():
    """Add the device to torch, for the rest of the process."""
    if not _libraries:
        _register()


@contextmanager
def counting_waits():
    """Yield a list that gets an entry for each wait: the line of the library that waits, and the operation."""
    waits: list[str] = []
    _counters.append(waits)
    try:
        yield waits
    finally:
        _counters.remove(waits)


class CardTensor(torch.Tensor):
    """A tensor on the device.

    Attributes:
        numbers: The tensor on the CPU that holds its numbers.
    """

    __module__ = "torch"  # by which opt_einsum knows whose tensor it is

    @staticmethod
    def __new__(cls, numbers):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device(CARD, 0),
        )
        tensor.numbers = numbers
        return tensor

    def __repr__(self):
        return f"CardTensor({self.numbers})"

    def __reduce_ex__(self, protocol):
        stored = self.numbers, self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, stored  # `torch.load` may put it elsewhere

    @property
    def data(self):
        return CardTensor(self.numbers)

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)  # the shape and the type; it does not know of the numbers
        self.numbers = value.numbers

    def storage(self):
        return self.numbers.untyped_storage()

    def tolist(self):
        _count("tolist")
        return self.numbers.tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError(f"can't convert {CARD}:0 device type tensor to numpy. Use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    """Check and count an operation, compute it on the CPU, and return what is on the device there."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, CardTensor) for tensor in tensors)
    target = kwargs.get("device")
    stays = on_device if target is None else _is_device(target)
    _check_generators(operation, args, kwargs, stays)
    if on_device:
        _check_one_device(operation, args, tensors)
    if _waits(operation, args, kwargs, on_device, stays):
        _count(operation.overloadpacket.__name__)
    result = operation(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
    if operation is aten.copy_.default:
        return args[0]
    if not stays:
        return result
    result = tree_map(_on_device, result)
    return return_and_correct_aliasing(operation, args, kwargs, result) if on_device else result


def _is_device(device):
    return torch.device(device).type == CARD


def _on_cpu(value):
    if isinstance(value, CardTensor):
        return value.numbers
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _on_device(value):
    return CardTensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, CardTensor) else value


def _check_generators(operation, args, kwargs, on_device):
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Generator) and on_device and not _is_device(leaf.device):
            raise RuntimeError(f"Expected a '{CARD}' device type for generator but found '{leaf.device}' ({operation})")


def _check_one_device(operation, args, tensors):
    """RuntimeError if tensors of the CPU take part in a way that CUDA does not allow."""
    if operation in COPIES:
        return
    if operation in INDEXED:
        tensors = [args[0], *args[2:3]]  # without the indices
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, CardTensor)]
    name = operation.overloadpacket.__name__
    numbers_are_allowed = name.rstrip("_") not in WITHOUT_NUMBERS
    changed = elsewhere and name.endswith("_") and elsewhere[0] is args[0]
    if changed or any(tensor.dim() > 0 or not numbers_are_allowed for tensor in elsewhere):
        raise RuntimeError(f"Expected all tensors to be on the same device, found {CARD}:0 and cpu ({operation})")


def _waits(operation, args, kwargs, on_device, stays):
    if operation is aten.copy_.default:
        from_device, to_device = (isinstance(tensor, CardTensor) for tensor in (args[1], args[0]))
        is_blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return from_device != to_device and (from_device or is_blocking)
    if operation is aten._to_copy.default:
        return on_device != stays and (on_device or not kwargs.get("non_blocking", False))
    if not on_device:
        return False
    if operation in INDEXED:
        return any(_index_waits(index, args) for index in args[1] if index is not None)
    if operation is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return operation.overloadpacket.__name__ in WAITING


def _index_waits(index, args):
    """Whether CUDA copies an index to the device, or must know how many elements a mask has."""
    if not isinstance(index, CardTensor):
        return True
    fills = len(args) > 2 and args[2].numel() == 1  # CUDA calls masked_fill, which does not count
    return index.dtype in (torch.bool, torch.uint8) and not fills


def _count(operation):
    if _counters:
        entry = f"{_line_of_the_library()} {operation}"
        for waits in _counters:
            waits.append(entry)


def _line_of_the_library():
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition("/src/metalora/")
        if found:
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    in_backward = threading.current_thread() is not threading.main_thread()
    return "backward" if in_backward else "elsewhere"


def _register():
    class Module(backend_registration._DummyBackendModule):
        __name__ = f"torch.{CARD}"

        def get_amp_supported_dtype(self):
            return [torch.bfloat16, torch.float16]

    backend_registration._setup_privateuseone_for_python_backend(CARD, backend_module=Module())
    torch.__future__.set_swap_module_params_on_conversion(True)  # `module.to` cannot change the class of `data`
    operations = torch.library.Library("aten", "IMPL")
    for operation in (*_factories(), *COPIES):
        operations.impl(operation, _kernel(operation), "PrivateUse1")
    for operation in PRODUCTS:
        operations.impl(operation, _autocast_kernel(operation), "AutocastPrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    # Where torch leaves out the class of a tensor, as in `torch.tensor(..., device=...)`.
    others.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
    _libraries.extend((operations, others))


def _factories():
    """The operations that make tensors on a device, out of no other tensor."""
    for schema in torch._C._jit_get_all_schemas():
        names = {argument.name for argument in schema.arguments}
        takes_tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
        if schema.name.startswith("aten::") and {"device", "pin_memory"} <= names and not takes_tensors:
            packet = getattr(aten, schema.name.removeprefix("aten::"))
            yield getattr(packet, schema.overload_name or "default")


def _kernel(operation):
    return lambda *args, **kwargs: _run(operation, args, kwargs)


def _autocast_kernel(operation):
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def in_lower_precision(*args, **kwargs):
        dtype = torch.get_autocast_dtype(CARD)

        def lowered(value):
            lowers = isinstance(value, CardTensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if lowers else value

        with torch._C._ExcludeDispatchKeyGuard(key):
            return operation(*tree_map(lowered, args), **tree_map(lowered, kwargs))

    return in_lower_precision
