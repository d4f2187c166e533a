"""The layout of a method's factors over the targets of a model: what is stored, and what every target reads of it."""

from metalora.adapters.layout.bonds import scales_by_path
from metalora.adapters.layout.build import build_layout
from metalora.adapters.layout.coordinates import counted_stacks
from metalora.adapters.layout.records import FactorParam, FactorSlice, Index, Layout, TargetLayout, read_slice

__all__ = [
    "FactorParam",
    "FactorSlice",
    "Index",
    "Layout",
    "TargetLayout",
    "build_layout",
    "counted_stacks",
    "read_slice",
    "scales_by_path",
]
