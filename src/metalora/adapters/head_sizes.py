"""The size of an attention head at a layer, as the modules around the layer or the configurations of the model say."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from metalora.adapters.held_matrix import modules_along

HEAD_SIZE = ("head_dim", "attention_head_size", "key_value_proj_dim", "d_kv")
NUMBER_OF_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads")  # names in modules and configurations
NUMBER_OF_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
PARTS_NEARBY = 2  # steps upwards from a layer whose other parts are asked: attention.output.dense asks attention.self


class HeadSizes:
    """The sizes of the attention heads of a model; every module is asked once, however many layers are below it.

    Args:
        model: The model, which must not change in the meantime.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._nearby: dict[nn.Module, int | None] = {}

    def at(self, path: str, width: int | None) -> int | None:
        """Size of an attention head at a layer; None if nothing says it.

        The nearest module above the layer that says it counts: by its size, by the attention next to the layer, by its
        number of heads, or by its configuration. A number for every stage (Swin's `num_heads=[2, 4]`) says nothing of
        one layer, so that the next module above is asked.

        Args:
            path: Path of the layer.
            width: Size of the axis of the layer that holds the heads; None if none does.

        Example:
            >>> attention = nn.MultiheadAttention(8, 2)
            >>> HeadSizes(nn.ModuleDict({"attention": attention})).at("attention.out_proj", 8)
            4
        """
        modules_above = modules_along(self._model, path.rpartition(".")[0])[::-1]
        for steps, above in enumerate(modules_above, start=1):
            size = _integer(above, HEAD_SIZE)
            if size is None and steps <= PARTS_NEARBY:
                size = self._size_nearby(above)
            if size is None:
                size = _size_by_number(above, width)
            if size is None:
                size = _size_of_config(getattr(above, "config", None))
            if size is not None:
                return size
        return None

    def _size_nearby(self, above: nn.Module) -> int | None:
        """The size that the parts of a module say, or their parts; None if they differ."""
        if above not in self._nearby:
            sizes = {_integer(part, HEAD_SIZE) for part in _parts(above)} - {None}
            self._nearby[above] = sizes.pop() if len(sizes) == 1 else None
        return self._nearby[above]


def _integer(owner: object, names: tuple[str, ...]) -> int | None:
    """The first attribute with one of these names, if it is a whole number above zero."""
    values = (_attribute(owner, name) for name in names)
    value = next((value for value in values if value is not None), None)
    return value if type(value) is int and value > 0 else None


def _attribute(owner: object, name: str) -> object:
    """An attribute; None if there is none, or if a configuration refuses it because its layers differ (Gemma 4)."""
    try:
        return getattr(owner, name, None)
    except RuntimeError:
        return None


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield child
        yield from child.children()


def _size_by_number(attention: nn.Module, width: int | None) -> int | None:
    heads, key_heads = _integer(attention, NUMBER_OF_HEADS), _integer(attention, NUMBER_OF_KEY_HEADS)
    if width is None or heads is None or key_heads not in (None, heads) or width % heads:
        return None
    return width // heads


def _size_of_config(config: object) -> int | None:
    size = _integer(config, HEAD_SIZE)
    width, heads = _integer(config, ("hidden_size",)), _integer(config, NUMBER_OF_HEADS)
    if size is None and width is not None and heads is not None:
        return width // heads
    return size
