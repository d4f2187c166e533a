"""What a network takes, made from pictures, texts or arrays as its weights expect them.

A preprocessor works in two steps. `encode` does the slow part for each item, and its small results may be kept;
`collate` makes a batch of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Tensor

from metalora._util.suggest import check_choice
from metalora.learner.data.array_preprocessing import ArrayPreprocessor
from metalora.learner.data.image_preprocessing import ImagePreprocessor
from metalora.learner.data.text_preprocessing import TextPreprocessor, load_tokenizer

Inputs = Tensor | dict[str, Tensor]


class Preprocessor(Protocol):
    """What makes the inputs of a network from the items of a pool."""

    kind: ClassVar[str]

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> Inputs:
        """Return the inputs of a network for n items.

        Args:
            items: The items.
            names: How messages call them; None: by their numbers.
        """

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return a small tensor for each item, which `collate` takes."""

    def collate(self, encoded: Sequence[Tensor]) -> Inputs:
        """Return the inputs of a network for what `encode` returned."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold; `preprocessor_from_dict` reads them."""


def preprocessor_from_dict(settings: Mapping[str, Any], folder: str | Path | None = None) -> Preprocessor:
    """Return the preprocessor that has these settings.

    Args:
        settings: What `to_dict` returned.
        folder: The folder with the files of the tokenizer, for texts.

    Raises:
        ValueError: The kind is unknown, or the tokenizer of texts is not in the folder.

    Example:
        >>> preprocess = ImagePreprocessor(size=(64, 64), resize=64)
        >>> preprocessor_from_dict(preprocess.to_dict()) == preprocess
        True
    """
    check_choice("preprocessor", settings["kind"], ("images", "text", "arrays"))
    if settings["kind"] == "images":
        return ImagePreprocessor.from_dict(settings)
    if settings["kind"] == "arrays":
        return ArrayPreprocessor()
    if folder is None:
        raise ValueError("a preprocessor of texts needs the folder of its tokenizer")
    return TextPreprocessor(load_tokenizer(Path(folder)), settings["max_length"])
