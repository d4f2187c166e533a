"""The networks of methods, drawn from their declarations at the sizes of RoBERTa-base."""

from __future__ import annotations

from metalora import AdapterConfig
from metalora.diagram import draw
from metalora.methods.registry import METHODS

SIZES = {"in": 768, "out": 768, "layer": 12, "proj": 3, "head": 12, "hdim": 64}
DRAWN = (
    AdapterConfig("lora", rank=8),
    AdapterConfig("metalora-cp", rank=8),
    AdapterConfig("metalora-tr", rank=3),
    AdapterConfig("metatt-4d", rank=8),
    AdapterConfig("metatt-5d", rank=8),
    AdapterConfig("metatt-4+1d", rank=8, tasks=3),
    *(
        AdapterConfig(f"tenslora-{stacked}", rank=8)
        for stacked in ("att", "qkv", "depth", "att-qkv", "att-depth", "qkv-depth", "att-qkv-depth")
    ),
)


def network(config: AdapterConfig) -> str:
    """Draw the network of a configuration."""
    modes = METHODS[config.method].network.modes
    return draw(config, {mode: size for mode, size in SIZES.items() if mode in modes})
