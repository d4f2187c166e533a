"""Texts as a network takes them: token numbers and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from metalora.learner.data.item_names import item_names

DEFAULT_MAX_LENGTH = 256
LONGEST_LENGTH = 1_000_000  # a tokenizer without a limit has a larger number

TOKENIZER_FILES = (  # that transformers may write
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class TextPreprocessor:
    """Tokenises texts, cuts them off at a number of tokens and pads them to the longest of a batch.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: The largest number of tokens; at most what the tokenizer allows.

    Raises:
        ValueError: `max_length` is smaller than the number of special tokens and one more.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "cat": 2}, unk_token="[PAD]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
        >>> TextPreprocessor(tokenizer)(["a cat", "a"])["input_ids"]
        tensor([[1, 2],
                [1, 0]])
    """

    kind: ClassVar[str] = "text"

    def __init__(self, tokenizer: Any, max_length: int = DEFAULT_MAX_LENGTH):
        limit = getattr(tokenizer, "model_max_length", None) or LONGEST_LENGTH
        special_tokens = tokenizer.num_special_tokens_to_add()
        if max_length <= special_tokens:
            raise ValueError(f"max_length {max_length}: expected more than the {special_tokens} special tokens")
        self.tokenizer = tokenizer
        self.max_length = min(max_length, limit)

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return token numbers and the mask of the tokens that count, (n, tokens) int64 each.

        Raises:
            ValueError: A text is empty or not a text; the message has its name or number.
        """
        return self.collate(self.encode(items, names))

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return the token numbers of every text, (tokens,) int32 each.

        Raises:
            ValueError: A text is empty or not a text.
        """
        names = item_names(items, names, "text")
        for item, name in zip(items, names, strict=True):
            if not isinstance(item, str):
                raise ValueError(f"{name}: a {type(item).__name__}, expected a text")
            if not item.strip():
                raise ValueError(f"{name}: the text is empty")
        encoded = self.tokenizer(list(items), truncation=True, max_length=self.max_length, padding=False)
        return [torch.tensor(ids, dtype=torch.int32) for ids in encoded["input_ids"]]

    def collate(self, encoded: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return token numbers and the mask of the tokens that count, (n, tokens) int64 each."""
        longest = max(len(ids) for ids in encoded)
        input_ids = torch.full((len(encoded), longest), self._padding_token(), dtype=torch.int64)
        mask = torch.zeros((len(encoded), longest), dtype=torch.int64)
        pads_left = self.tokenizer.padding_side == "left"
        for row, ids in enumerate(encoded):
            place = slice(longest - len(ids), None) if pads_left else slice(0, len(ids))
            input_ids[row, place] = ids.long()
            mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold; the tokenizer is not among them, see `save_tokenizer`."""
        return {"kind": self.kind, "max_length": self.max_length}

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the files of the tokenizer to a folder, from which `preprocessor_from_dict` reads them."""
        self.tokenizer.save_pretrained(folder)

    def _padding_token(self) -> int:
        """Return a token number for the padding, which the mask hides."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer that `TextPreprocessor.save_tokenizer` wrote.

    Raises:
        ValueError: There is none in the folder, or it is damaged.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no tokenizer that can be loaded ({str(error).splitlines()[0]})") from None
