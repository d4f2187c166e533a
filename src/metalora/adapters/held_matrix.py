"""Matrices that no layer multiplies: parameters that a module reads itself, such as experts or attention's projections.

A target names such a matrix by the path of the parameter ("mlp.gate.weight"). A parameter of three axes is a stack of
matrices, and each of them is a target with its number at the end ("mlp.experts.down_proj.3").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from metalora.adapters.substitution import SubstitutedParameter

READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of layers inside of them, so that these layers may never run."""
STACK_AXES = 3
MATRIX, MATRIX_TRANSPOSED = "matrix", "matrix_transposed"
"""Kinds of targets: a matrix that is stored as (out, in), and one that is stored as (in, out)."""
SUBSTITUTED = "adapted_"
"""What the name of a module starts with that a holder gets for an adapted parameter; the parameter's name follows."""


class HeldMatrix(nn.Module):
    """A matrix inside of a parameter, as the base of an adapted layer: it has a `weight`, and is never called.

    Args:
        holder: The module that has the parameter.
        name: Name of the parameter there.
        index: Which matrix of a stack it is; None for a parameter that is one matrix.
        transposed: True if the matrix is stored as (in, out).

    Example:
        >>> holder = nn.MultiheadAttention(4, 2)
        >>> HeldMatrix(holder, "in_proj_weight").weight.shape
        torch.Size([12, 4])
    """

    bias = None

    def __init__(self, holder: nn.Module, name: str, index: int | None = None, transposed: bool = False):
        super().__init__()
        self._holder = (holder,)  # a tuple: the holder registers the adapted layer, and not the other way round
        self.name, self.index, self.transposed = name, index, transposed

    @property
    def holder(self) -> nn.Module:
        """The module that has the parameter."""
        return self._holder[0]

    @property
    def parameter(self) -> Tensor:
        """The whole parameter, (out, in) or (matrices, out, in), without the update of a forward that runs."""
        substituted = substituted_parameter(self.holder, self.name)
        if substituted is not None and substituted.replaced is not None:
            return substituted.replaced[0]
        parameter = self.holder._parameters[self.name]
        assert parameter is not None
        return parameter

    @property
    def weight(self) -> Tensor:
        """The matrix, (out, in) or (in, out); it shares its memory with the parameter."""
        return self.parameter if self.index is None else self.parameter[self.index]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of its modes."""
        first, last = self.parameter.shape[-2:]
        return {"out": last, "in": first} if self.transposed else {"out": first, "in": last}

    @property
    def kind(self) -> str:
        """Kind of a target: matrix, or matrix_transposed if it is stored as (in, out)."""
        return MATRIX_TRANSPOSED if self.transposed else MATRIX


def substituted_parameter(holder: nn.Module, name: str) -> SubstitutedParameter | None:
    """Return the module that adapts a parameter of a holder; None if it is not adapted."""
    return cast("SubstitutedParameter | None", holder._modules.get(SUBSTITUTED + name))


def held_matrix(model: nn.Module, path: str) -> HeldMatrix | None:
    """Return the matrix that a path names; None for a layer that runs itself, and for a path of something else.

    Args:
        model: The model, with or without an adapter.
        path: Path of a parameter, with the number of the matrix for a stack, or path of a layer whose weight another
            module reads.

    Example:
        >>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "fc": nn.Linear(4, 4)})
        >>> [held_matrix(model, path) is None for path in ("attention.in_proj_weight", "attention.out_proj", "fc")]
        [False, False, True]
    """
    parent, _, name = path.rpartition(".")
    modules = modules_along(model, path)
    if len(modules) == path.count(".") + 2:  # every word names a module
        return HeldMatrix(modules[-1], "weight") if is_read_by_parent(modules[-2], modules[-1]) else None
    if len(modules) == parent.count(".") + 2 or not parent:
        return _matrix_of(modules[-1], name, None)
    holder_path, _, parameter = parent.rpartition(".")
    is_number = name.isdecimal() and len(modules) == (holder_path.count(".") + 2 if holder_path else 1)
    return _matrix_of(modules[-1], parameter, int(name)) if is_number else None


def modules_along(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the model and the modules that the words of a path name, up to the first word that names none.

    Example:
        >>> [type(module).__name__ for module in modules_along(nn.Sequential(nn.Linear(2, 2)), "0.weight")]
        ['Sequential', 'Linear']
    """
    modules = [model]
    for word in path.split("."):
        child = modules[-1]._modules.get(word)
        if child is None:
            break
        modules.append(child)
    return modules


def _matrix_of(holder: nn.Module, name: str, index: int | None) -> HeldMatrix | None:
    parameter = holder._parameters.get(name)
    if parameter is None or parameter.ndim != (2 if index is None else STACK_AXES):
        return None
    if index is not None and index >= len(parameter):
        return None
    # Mixture-of-experts classes of transformers that store (experts, in, out) say so.
    return HeldMatrix(holder, name, index, index is not None and bool(getattr(holder, "is_transposed", False)))


def is_read_by_parent(parent: nn.Module, module: nn.Module) -> bool:
    """Return True for a layer whose weight the module above it reads, so that the layer itself may never run.

    Example:
        >>> attention = nn.MultiheadAttention(4, 2)
        >>> is_read_by_parent(attention, attention.out_proj)
        True
    """
    return isinstance(parent, READERS) and isinstance(module, nn.Linear)


def base_at(model: nn.Module, path: str) -> nn.Module | None:
    """Return what a target's path names: a layer, adapted or not, or a matrix; None if there is no such thing.

    Args:
        model: The model, with or without an adapter.
        path: Path of a target.

    Example:
        >>> base_at(nn.Sequential(nn.Linear(2, 2)), "0")
        Linear(in_features=2, out_features=2, bias=True)
    """
    matrix = held_matrix(model, path)
    if matrix is None:
        modules = modules_along(model, path)
        return modules[-1] if len(modules) == path.count(".") + 2 else None
    substituted = substituted_parameter(matrix.holder, matrix.name)
    layer = None if substituted is None else substituted.layer_of(matrix.index)
    return matrix if layer is None else layer


def required_base(model: nn.Module, path: str) -> nn.Module:
    """Return what the path of a target of this model names; see `base_at`."""
    base = base_at(model, path)
    assert base is not None, path
    return base


def matrices_in(path: str, module: nn.Module) -> Iterator[str]:
    """Yield the paths of the matrices that a module holds itself, every matrix of a stack on its own.

    Args:
        path: Path of the module.
        module: The module; of a layer other than `nn.Linear` nothing is yielded, since its weight is no matrix.

    Example:
        >>> list(matrices_in("attention", nn.MultiheadAttention(4, 2)))
        ['attention.in_proj_weight']
    """
    if isinstance(module, (nn.modules.conv._ConvNd, nn.Embedding, nn.RNNBase)) or type(module).__name__ == "Conv1D":
        return
    for name, parameter in module._parameters.items():
        if parameter is None or "bias" in name:
            continue
        full_name = f"{path}.{name}" if path else name
        if parameter.ndim == 2:
            yield full_name
        elif parameter.ndim == STACK_AXES:
            yield from (f"{full_name}.{index}" for index in range(len(parameter)))


def paths_in_order(model: nn.Module) -> list[str]:
    """Return the paths of all modules and matrices in the order of the model: a module, then the matrices in it.

    Example:
        >>> paths_in_order(nn.MultiheadAttention(4, 2))
        ['', 'in_proj_weight', 'out_proj', 'out_proj.weight']
    """
    paths = []
    for path, module in model.named_modules():
        paths += [path, *matrices_in(path, module)]
    return paths


def matrices_by_name(model: nn.Module) -> dict[str, list[str]]:
    """Path of a parameter, or of one matrix in a stack -> the paths of its matrices.

    Example:
        >>> matrices_by_name(nn.MultiheadAttention(4, 2))
        {'in_proj_weight': ['in_proj_weight'], 'out_proj.weight': ['out_proj.weight']}
    """
    by_name: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        for matrix in matrices_in(path, module):
            parameter, _, number = matrix.rpartition(".")
            if number.isdecimal():
                by_name.setdefault(parameter, []).append(matrix)
            by_name.setdefault(matrix, []).append(matrix)
    return by_name


def readers_of(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules that read a matrix in their forwards: its holder, and those above that reach into it.

    `nn.TransformerEncoder` reads the weights of its first layer, to choose between two ways to run.

    Args:
        model: The model.
        path: Path of the matrix, as `held_matrix` takes it.

    Example:
        >>> model = nn.TransformerEncoderLayer(4, 2, 8)
        >>> [type(reader).__name__ for reader in readers_of(model, "self_attn.in_proj_weight")]
        ['MultiheadAttention', 'TransformerEncoderLayer']
    """
    readers: list[nn.Module] = []
    words = path.split(".")
    modules = modules_along(model, path)
    for depth in range(len(modules) - 1, -1, -1):
        module = modules[depth]
        is_first = words[depth : depth + 2] == ["layers", "0"]
        if readers and not isinstance(module, (*READERS, nn.ModuleList)):
            if not (isinstance(module, nn.TransformerEncoder) and is_first):
                break
        if type(module).forward is not nn.Module.forward:  # a list of modules or parameters never runs
            readers.append(module)
    return readers


def prefix_in_state(path: str, base: nn.Module) -> str:
    """Return how the names of the entries of an adapted model's state start that have the weight of a target.

    Args:
        path: Path of the target.
        base: The base of its layer.

    Example:
        >>> prefix_in_state("attention.in_proj_weight", HeldMatrix(nn.MultiheadAttention(4, 2), "in_proj_weight"))
        'attention.in_proj_weight'
    """
    if not isinstance(base, HeldMatrix):
        return f"{path}.base."
    return parameter_name(path, base)


def parameter_name(path: str, matrix: HeldMatrix) -> str:
    """Return the name, in the model, of the parameter that a matrix is in.

    Example:
        >>> parameter_name("out_proj", HeldMatrix(nn.Linear(2, 2), "weight"))
        'out_proj.weight'
    """
    if matrix.index is not None:
        return path.rpartition(".")[0]
    return path if path.rpartition(".")[2] == matrix.name else f"{path}.{matrix.name}"


def whole_parameter(base: nn.Module) -> Tensor:
    """Return the parameter whose numbers are the weight of a base: the weight itself, or what a matrix is in.

    Args:
        base: A layer (weight of any shape), or a matrix in a parameter (out, in) or (matrices, out, in).
    """
    weight = base.parameter if isinstance(base, HeldMatrix) else base.weight
    assert isinstance(weight, torch.Tensor)
    return weight
