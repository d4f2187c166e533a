"""A small decoder of characters, pre-trained on the news articles of the training split, and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metalora_papers.cache import cache_folder
from metalora_papers.metalora.continuation_config import DecoderConfig

RECIPE = 1  # raise it whenever the same configuration would give other weights


def pretrained_decoder(config: DecoderConfig, texts: Sequence[str], cache: str | Path | None = None) -> Path:
    """Return the folder of a pre-trained decoder, as `AutoModelForCausalLM.from_pretrained` reads it.

    It is trained once and then read from the cache: `cache`, else `$METALORA_CACHE/decoders`, else
    `~/.cache/metalora/decoders`.

    Args:
        config: Its sizes and its training.
        texts: What it learns to continue.
        cache: The folder of all decoders.
    """
    identity = json.dumps({"recipe": RECIPE, "texts": _digest(texts), **dataclasses.asdict(config)}, sort_keys=True)
    folder = cache_folder("decoders", cache) / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if folder.exists():
        return folder
    model, tokenizer = pretrain(config, texts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
    return folder


def pretrain(config: DecoderConfig, texts: Sequence[str]) -> tuple[Any, Any]:
    """Train a decoder to predict the next character, on the CPU: the same arguments give the same bits.

    Returns:
        The model, in eval mode, and its tokenizer.
    """
    tokenizer = character_tokenizer()
    tokens = [torch.tensor(ids) for ids in tokenizer(list(texts))["input_ids"] if len(ids) > config.context]
    rng = random.Random(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = _untrained(config, len(tokenizer)).train()
        optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps)
        for _ in range(config.steps):
            ids = torch.stack([_window(tokens, config.context, rng) for _ in range(config.batch)])
            loss = model(input_ids=ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), tokenizer


def character_tokenizer() -> Any:
    """Return a tokenizer with a token for each byte, and one for the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def _untrained(config: DecoderConfig, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.width,
        intermediate_size=8 * config.width // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.context,
        eos_token_id=vocabulary - 1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(sizes)


def _window(tokens: Sequence[torch.Tensor], length: int, rng: random.Random) -> torch.Tensor:
    text = rng.choice(tokens)
    start = rng.randrange(len(text) - length)
    return text[start : start + length]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
