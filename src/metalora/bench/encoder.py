"""An encoder of the shape of MiniLM."""

from __future__ import annotations

from typing import cast

from torch import nn

ENCODER = dict(hidden_size=384, num_attention_heads=12, intermediate_size=1536)  # the shape of MiniLM


def encoder(layers: int = 6) -> nn.Module:
    """Build a random encoder of MiniLM's shape, with the given number of layers, in eval mode."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**ENCODER | {"num_hidden_layers": layers})
    return cast(nn.Module, BertModel(config, add_pooling_layer=False).eval())
