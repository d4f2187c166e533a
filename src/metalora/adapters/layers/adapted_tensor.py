"""The weight and the bias of an adapted layer as other modules read them: computed when somebody computes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from metalora.adapters.layers.read_as_base import ReadAsBase

ATTRIBUTES = (
    "dtype", "device", "shape", "ndim", "layout", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized",
    "requires_grad", "itemsize", "nbytes",
)  # fmt: skip
LOOKS = frozenset(
    {
        *(getattr(Tensor, name).__get__ for name in ATTRIBUTES),
        Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.stride,
        Tensor.is_floating_point, Tensor.is_complex, Tensor.is_contiguous, Tensor.element_size, Tensor.get_device,
        Tensor.__len__, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor,
        torch.is_floating_point, torch.is_complex, torch.numel,
        torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like,
    }
)  # fmt: skip
"""Functions of torch that ask a weight for its type, device or shape, and not for its numbers."""
LOOKS_AT_SECOND = frozenset(
    {Tensor.to, Tensor.type_as, Tensor.expand_as, Tensor.view_as, Tensor.reshape_as}  # such as x.to(weight)
)
WRITES = frozenset(
    {
        Tensor.__setitem__, Tensor.__iadd__, Tensor.__isub__, Tensor.__imul__, Tensor.__itruediv__,
        Tensor.register_hook, Tensor.retain_grad, Tensor.backward,
    }
)  # fmt: skip
"""Functions that change a tensor, next to those whose names end with an underscore."""

TRAINING = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
"""What sets whether the base's own tensor is trained."""
DETACHING = (Tensor.detach, getattr(Tensor, "data").__get__)  # noqa: B009


class AdaptedTensor(Tensor):
    """W + Delta W or the bias of an adapted layer; nothing is computed until a function of torch takes its numbers.

    Type, device and shape are those of the base's own. It cannot be written to: the base is frozen, and the change
    belongs to the adapter.

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=1, targets="0"))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> weight = model[0].weight
        >>> type(weight).__name__, weight.dtype, weight.shape
        ('AdaptedTensor', torch.float32, torch.Size([2, 4]))
        >>> torch.equal(weight * 1, model[0].base.weight + adapter.delta("0"))
        True
    """

    layer: ReadAsBase
    which: str
    is_detached: bool
    records: bool

    @staticmethod
    def __new__(cls, layer: ReadAsBase, which: str, is_detached: bool = False) -> AdaptedTensor:
        """Make a tensor without numbers.

        Args:
            layer: The adapted layer.
            which: "weight" or "bias"; the base has a tensor of this name.
            is_detached: True if it gives no gradient to the factors.

        Returns:
            A tensor in the shape of the base's own, (*weight) or (o,).
        """
        stored = layer.stored(which)
        adapted: AdaptedTensor = Tensor._make_wrapper_subclass(
            cls, stored.shape, stored.stride(), dtype=stored.dtype, device=stored.device, layout=stored.layout
        )
        adapted.layer, adapted.which, adapted.is_detached = layer, which, is_detached
        adapted.records = torch.is_grad_enabled()
        return adapted

    def computed(self) -> Tensor:
        """Return W + Delta W (*weight), or the bias with its change (o,).

        Raises:
            ValueError: No single tensor is that of the layer, or a function with a backward of its own takes it, which
                would keep the gradient from the factors.
        """
        # A torch.autograd.Function switches both kinds of gradients off, torch.no_grad only one of them.
        is_in_function = not (torch.is_grad_enabled() or torch._C._is_fwd_grad_enabled())
        if self.records and is_in_function and not (self.is_detached or torch.is_inference_mode_enabled()):
            raise self.layer.cannot_be_read("passes it to a torch.autograd.Function, which would lose the gradient")
        value = self.layer.adapted(self.which)
        return value.detach() if self.is_detached else value

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch on the base's weight if it only looks, and otherwise on W + Delta W."""
        kwargs = dict(kwargs or {})
        first = args[0] if args else kwargs.get("tensor")  # the functions of torch.nn.init call it so
        if isinstance(first, AdaptedTensor) and func in DETACHING:
            return AdaptedTensor(first.layer, first.which, is_detached=True)
        written = first if func in WRITES or (_is_in_place(func) and func not in TRAINING) else kwargs.get("out")
        if isinstance(written, AdaptedTensor):
            raise written.layer.cannot_be_read("changes it, which would have no effect (the base has its own)")
        looks = func in LOOKS or func in TRAINING or (func in LOOKS_AT_SECOND and not isinstance(first, AdaptedTensor))
        replace = _stored if looks else _computed
        with torch._C.DisableTorchFunctionSubclass():
            args, kwargs = tree_map(replace, args), tree_map(replace, kwargs)
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse what has come past `__torch_function__`, such as a kernel that takes the address of the numbers."""
        values = [*args, *(kwargs or {}).values()]
        adapted = next(value for value in values if isinstance(value, AdaptedTensor))
        raise adapted.layer.cannot_be_read(f"passes it to {func} in a way that torch cannot follow")


def _is_in_place(func: Callable[..., Any]) -> bool:
    """Whether a function changes its first argument: `add_`, or the assignment to an attribute."""
    name = getattr(func, "__name__", "")
    return name == "__set__" or (name.endswith("_") and not name.endswith("__"))


def _stored(value: Any) -> Any:
    return value.layer.stored(value.which) if isinstance(value, AdaptedTensor) else value


def _computed(value: Any) -> Any:
    return value.computed() if isinstance(value, AdaptedTensor) else value
