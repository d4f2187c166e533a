"""The number of the layer of a model that a path lies in, and the path without it."""

from __future__ import annotations

from torch import nn

from metalora.adapters.held_matrix import modules_along


class LayerNumbers:
    """The layers of a model by number; the children of every module are compared once, however many layers there are.

    Args:
        model: The model, which must not change in the meantime.

    Example:
        >>> layers = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(8, 8)}) for _ in range(2))
        >>> LayerNumbers(nn.ModuleDict({"layers": layers})).at("layers.1.query")
        ((1,), 'layers.*.query')
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._of_one_class: dict[nn.Module, bool] = {}

    def at(self, path: str) -> tuple[tuple[int, ...] | None, str]:
        """The numbers of the layer, None outside of layers, and the role: the path with "*" in the place of a number.

        A number counts layers if all its siblings are of one class. So does the number of a matrix, in a stack or in a
        list of parameters.

        Args:
            path: Path of a module or of a matrix.
        """
        words = path.split(".")
        role = list(words)
        numbers = []
        modules = modules_along(self._model, path)
        for place, word in enumerate(words):
            if word.isdigit():
                above = modules[place] if place < len(modules) else None
                if above is None or word in above._parameters or self._has_children_of_one_class(above):
                    numbers.append(int(word))
                    role[place] = "*"
        return tuple(numbers) or None, ".".join(role)

    def _has_children_of_one_class(self, module: nn.Module) -> bool:
        if module not in self._of_one_class:
            self._of_one_class[module] = len({type(child) for child in module.children()}) == 1
        return self._of_one_class[module]
