"""A merged model as a folder of `transformers`: what from_pretrained, and so lm-evaluation-harness, takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from metalora.adapters.attach import detach
from metalora.adapters.conditioning import Condition
from metalora.io.adapter_file import merged_state


def load_base(folder: str, kind: str) -> tuple[nn.Module, Any]:
    """A model of `transformers` of the class `kind` (LlamaForCausalLM, ...) and its tokenizer, None if it has none.

    ValueError: a class or a model that is not there.
    """
    import transformers

    if not hasattr(transformers, kind):
        raise ValueError(f"the adapter's base is a {kind}, which is no class of transformers")
    try:
        model = getattr(transformers, kind).from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"model hf:{folder}: {str(error).splitlines()[0]}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    return model.eval(), tokenizer


def save_merged_folder(
    model: nn.Module, folder: str | Path, tokenizer: Any = None, condition: Condition | None = None
) -> None:
    """Write config, tokenizer and base + Delta W to a folder; the model ends without adapter, with those weights.

    ValueError: the model is none of `transformers`, or has no adapter; nothing is written.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is no model of transformers, so no folder can be written")
    state = merged_state(model, condition)
    detach(model)
    model.load_state_dict(state)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
