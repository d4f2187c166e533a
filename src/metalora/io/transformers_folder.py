"""A merged model as a folder of `transformers`: what from_pretrained, and so lm-evaluation-harness, takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from metalora.adapters.attach import detach
from metalora.adapters.conditioning.condition import Condition
from metalora.io.merged_model import merged_state


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
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    condition: Condition | None = None,
    max_shard_size: str | None = None,
) -> None:
    """Write config, tokenizer and base + Delta W to a folder; the model ends without adapter, with those weights.

    max_shard_size  as transformers has it ("2GB"); None: shards like those that the base was loaded from, if it was
    ValueError: the model is none of `transformers`, or has no adapter, or that is no size; nothing is written.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is no model of transformers, so no folder can be written")
    size = _largest_shard(model.name_or_path) if max_shard_size is None else _size(max_shard_size)
    state = merged_state(model, condition)
    detach(model)
    model.load_state_dict(state)
    model.save_pretrained(folder, **({} if size is None else {"max_shard_size": size}))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _size(text: str) -> int:
    from transformers.utils.hub import convert_file_size_to_int

    try:
        return convert_file_size_to_int(text)
    except ValueError:
        raise ValueError(f"max_shard_size {text!r}: expected a whole number and its unit, such as 2GB") from None


def _largest_shard(name: str) -> int | None:
    """The bytes of the tensors in the largest shard of a folder or a name on the Hub; None where there is no shard."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **options) if name else None
    if index is None:
        return None
    files = {*json.loads(Path(index).read_text())["weight_map"].values()}
    return max(_bytes_of_tensors(Path(index).with_name(file)) for file in files)


def _bytes_of_tensors(path: Path) -> int:
    """The size of a safetensors file without its header, whose length is its first eight bytes."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
