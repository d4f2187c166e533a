"""The handlers of the mechanisms of `metalora.methods.records`, chosen once when the layout of a target is built."""

from metalora.adapters.mechanisms.handler import Handler
from metalora.adapters.mechanisms.registry import bind_mechanisms, materialize_factors

__all__ = ["Handler", "bind_mechanisms", "materialize_factors"]
