"""Adapters that are meta-trained through a readout: attributes, emoji and texts, next to what a user would pick."""
