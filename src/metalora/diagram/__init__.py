"""Tensor diagrams: the network of a method as a drawing."""

from metalora.diagram.draw import draw, draw_on_model

__all__ = ["draw", "draw_on_model"]
