"""The tensor diagram of a method, with the sizes of a configuration, of numbers, or of an adapter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import Layout, build_layout
from metalora.adapters.usable_targets import usable_targets
from metalora.config import AdapterConfig
from metalora.diagram.compose import draw_network, with_title
from metalora.diagram.svg import to_svg
from metalora.methods.method import Method
from metalora.methods.records import NonlinearBottleneck
from metalora.methods.resolve import ResolvedMethod, resolve
from metalora.tensornet.spec import KERNEL_MODES


def draw(method: str | AdapterConfig | Adapter, sizes: Mapping[str, int] | None = None) -> str:
    """Draw the network of a method as a tensor diagram.

    A node is a factor. A line between nodes is a bond, with its name and size; a bond of three factors or more has a
    dot. A leg that ends in the open is a mode of the weight, or the coordinate (layer, projection, task) by which a
    target selects a slice. Generated factors have another colour. Parts without a common bond are multiplied, terms are
    joined by their sign. If sizes are known and the kernel is not among them, the layer is linear and has no kernel.

    Args:
        method: Name of a method, a configuration, or an attached adapter, whose sizes are those of its stored factors
            (if several copies have different sizes, of the first one).
        sizes: Mode -> its size, such as {"in": 768, "out": 768, "layer": 12}; ranks are in the configuration.

    Returns:
        The text of an SVG file.

    Raises:
        ValueError: An unknown method, a size of a mode that the method does not have, a size below 1, or sizes for an
            adapter.

    Example:
        >>> picture = draw(AdapterConfig("metatt-4d", rank=8), {"in": 768, "out": 768, "layer": 12, "proj": 2})
        >>> picture.count('class="bond"'), "r1 = 8" in picture, "layer = 12" in picture
        (3, True, True)
    """
    if isinstance(method, Adapter):
        if sizes is not None:
            raise ValueError("draw: an adapter has sizes of its own; leave sizes out, or pass its configuration")
        return _draw_layout(method.resolved, method.layout)
    resolved = resolve(AdapterConfig(method) if isinstance(method, str) else method)
    all_sizes = {**_configured_sizes(resolved), **_checked(resolved, sizes or {})}
    return _draw(resolved, all_sizes, linear=_is_linear(sizes))


def draw_on_model(model: nn.Module, config: AdapterConfig) -> str:
    """Draw the network that a configuration has on a model, as `draw` does for an attached adapter.

    Args:
        model: The model; its weights may be on the "meta" device.
        config: The adapter.

    Raises:
        ValueError: The adapter does not fit the model, as in `metalora.attach`.

    Example:
        >>> "in = 8" in draw_on_model(nn.Sequential(nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets="0"))
        True
    """
    resolved = resolve(config)
    return _draw_layout(resolved, build_layout(usable_targets(model, config)[0], resolved))


def _draw_layout(resolved: ResolvedMethod, layout: Layout) -> str:
    """The network of a method with the sizes of its stored factors."""
    sizes: dict[str, int] = {}
    for factor in layout.params.values():
        for mode, size in zip(factor.modes, factor.shape, strict=True):
            sizes.setdefault(mode, size)
    return _draw(resolved, _configured_sizes(resolved) | sizes, linear=_is_linear(sizes))


def _is_linear(sizes: Mapping[str, int] | None) -> bool:
    return bool(sizes) and not {*KERNEL_MODES} & {*(sizes or {})}


def _checked(resolved: ResolvedMethod, sizes: Mapping[str, int]) -> Mapping[str, int]:
    modes = [*resolved.method.network.modes]
    for mode, size in sizes.items():
        if mode not in modes:
            raise ValueError(f"draw: method {resolved.name!r} has no mode {mode!r}{nearest(mode, modes)}")
        if size < 1:
            raise ValueError(f"draw: the size of {mode!r} is {size}, expected at least 1")
    return sizes


def _configured_sizes(resolved: ResolvedMethod) -> dict[str, int]:
    """The sizes that a configuration gives: ranks, experts, tasks, and bonds of a fixed size."""
    method, config = resolved.method, resolved.config
    sizes = method.bond_sizes(config.rank, config.experts)
    sizes |= {bond: size for bond, size in method.fixed_bonds.items() if isinstance(size, int)}
    return {**sizes, "expert": config.experts, "task": config.tasks}


def _draw(resolved: ResolvedMethod, sizes: Mapping[str, int], *, linear: bool) -> str:
    method = resolved.method
    network = method.network.without_modes(KERNEL_MODES if linear else ())
    # a bond of a fixed size may have the size of another mode
    same_size = {bond: mode for bond, mode in method.fixed_bonds.items() if isinstance(mode, str)}
    labels = {}
    for mode in network.modes:
        size = sizes.get(mode, sizes.get(same_size.get(mode, "")))
        labels[mode] = mode if size is None else f"{mode} = {size}"
    styles = {factor: _style(resolved, factor) for factor in network.factors}
    drawing = draw_network(network, labels, styles, _sign(method))
    return to_svg(with_title(drawing, [method.name, " ".join(method.formula.split())]))


def _sign(method: Method) -> str:
    """What is between two terms of a method."""
    bottleneck = method.record(NonlinearBottleneck)
    if bottleneck is not None:
        return f"→ {bottleneck.activation} →"
    if method.components:
        return "or"  # each on targets of its own
    return "−" if method.form == "circuit" else "+"


def _style(resolved: ResolvedMethod, factor: str) -> str:
    if factor in resolved.generated:
        return "generated"
    return "frozen" if factor in resolved.frozen or factor in resolved.method.non_trainable else "learned"
