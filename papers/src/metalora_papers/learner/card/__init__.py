"""The emoji table at 96 pixels on a machine with a card, which has neither a network nor the package's own data."""
