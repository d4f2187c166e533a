"""Adapted layers, one class for each kind of base layer."""

from metalora.adapters.convolutions import CONVOLUTIONS
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.bottleneck import BottleneckLayer
from metalora.adapters.layers.conv import AdaptedConv
from metalora.adapters.layers.embedding import AdaptedEmbedding
from metalora.adapters.layers.feature_wise import FeatureWiseLayer
from metalora.adapters.layers.general_conv import AdaptedGeneralConv
from metalora.adapters.layers.linear import AdaptedLinear, AdaptedTransposedLinear
from metalora.adapters.layers.mergeable import MergeableLayer
from metalora.adapters.layers.output_layer import OutputLayer

LAYERS: dict[str, type[AdaptedLayer]] = {
    "linear": AdaptedLinear,
    **dict.fromkeys(CONVOLUTIONS, AdaptedGeneralConv),
    "conv1d": AdaptedConv,
    "conv2d": AdaptedConv,
    "conv1d_gpt2": AdaptedTransposedLinear,
    "embedding": AdaptedEmbedding,
}

__all__ = [
    "LAYERS",
    "AdaptedConv",
    "AdaptedEmbedding",
    "AdaptedGeneralConv",
    "AdaptedLayer",
    "AdaptedLinear",
    "AdaptedTransposedLinear",
    "BottleneckLayer",
    "FeatureWiseLayer",
    "MergeableLayer",
    "OutputLayer",
]
