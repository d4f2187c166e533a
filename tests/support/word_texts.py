"""Texts of a few words, and the preparation that makes tokens of them."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from metalora.learner import TextPreprocessor

WORDS = ("red", "green", "blue", "ripe", "sour", "apple", "pear", "plum", "old", "new")


def text_preprocessor(max_length):
    """A preprocessor with a token for each of `WORDS`."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0} | {word: k + 1 for k, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return TextPreprocessor(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"), max_length)
