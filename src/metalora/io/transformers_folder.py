"""A merged model as a folder of `transformers`, which from_pretrained reads, and so lm-evaluation-harness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from metalora._util.files import check_new_folder, new_folder
from metalora._util.shown import shown
from metalora.adapters.attach import detach
from metalora.adapters.conditioning.condition import Condition
from metalora.io.merged_model import merged_state
from metalora.zoo import check_base_is_here, options_for, same_fresh_weights

PROCESSOR_FILES = (
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
"""Files of a base's folder that say how its inputs are made; they stay the same when its weights are merged."""


def load_base(folder: str, kind: str) -> tuple[nn.Module, Any]:
    """Load a model of `transformers` and its tokenizer.

    Args:
        folder: A folder, or a name on the Hub.
        kind: Name of the class of the model, such as LlamaForCausalLM, or of one that finds it, such as
            AutoModelForCausalLM.

    Returns:
        The model in evaluation mode, and its tokenizer or None.

    Raises:
        ValueError: `transformers` has no such class, or there is no such model.
    """
    import transformers

    model_class: Any = getattr(transformers, kind, None)
    automatic = transformers.models.auto.auto_factory._BaseAutoModelClass
    is_of_models = isinstance(model_class, type) and issubclass(model_class, (transformers.PreTrainedModel, automatic))
    if not is_of_models:
        raise ValueError(f"the adapter's base is a {shown(kind)}, which is not a class of models of transformers")
    try:
        check_base_is_here(folder)
        with same_fresh_weights():
            model = model_class.from_pretrained(folder, **options_for(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"model hf:{folder}: {str(error).splitlines()[0]}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options_for(folder))
    except (OSError, ValueError, KeyError):  # a vision model, for example, has none
        tokenizer = None
    return model.eval(), tokenizer


def load_whole(folder: str, kind: str) -> tuple[nn.Module, nn.Module, Any]:
    """Load the model that a folder holds, heads included, and the part of it that is of a class.

    Args:
        folder: A folder, or a name on the Hub.
        kind: Name of the class of the part, such as LlamaModel of a LlamaForCausalLM.

    Returns:
        The part; the model of the folder's own class, or the part again if that class does not contain one of `kind`
            with the same weights; and the tokenizer or None.

    Raises:
        ValueError: As `load_base`.
    """
    whole_kind = _class_around(folder, kind)
    whole, tokenizer = load_base(folder, whole_kind or kind)
    part: Any = whole if whole_kind is None else getattr(whole, "base_model", None)
    return part, whole, tokenizer


def _class_around(folder: str, kind: str) -> str | None:
    """Return the class of a folder if its body is of another class, with the same weights as that class alone."""
    import transformers

    part_class: Any = getattr(transformers, kind, None)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options_for(folder))
    except (OSError, ValueError):  # `load_base` says what is wrong with it
        return None
    name = (getattr(config, "architectures", None) or [kind])[0]
    whole_class: Any = getattr(transformers, name, None)
    classes = (part_class, whole_class)
    if name == kind or not all(isinstance(c, type) and issubclass(c, transformers.PreTrainedModel) for c in classes):
        return None
    with torch.device("meta"):  # the names of the weights are enough
        part, whole = part_class(config), whole_class(config)
    body = whole.base_model
    is_around = body is not whole and type(body) is part_class and body.state_dict().keys() == part.state_dict().keys()
    return name if is_around else None


def save_merged_folder(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    condition: Condition | None = None,
    max_shard_size: str | None = None,
    whole: nn.Module | None = None,
) -> None:
    """Write the configuration, the tokenizer and the weights W + Delta W to a folder.

    Afterwards the model has no adapter, and its weights are the merged ones.

    Args:
        model: A model of `transformers` with an adapter.
        folder: The folder to write.
        tokenizer: The tokenizer of the model; None writes none.
        condition: The condition of one example or task, for an adapter whose factors depend on one.
        max_shard_size: The largest size of a weight file, as `transformers` writes it ("2GB"). None: as large as the
            largest file that the base was loaded from, if it was loaded from several.
        whole: The model with heads that contains `model`, and is written in its place.

    Raises:
        ValueError: The model is not one of `transformers` or has no adapter, the size is not readable, or the folder
            is there already and not empty, or cannot be written; then there is no such folder.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is not a model of transformers, so no folder can be written")
    check_new_folder(folder)
    transformers_model: Any = model if whole is None else whole
    name = transformers_model.name_or_path
    size = _largest_shard(name) if max_shard_size is None else _size_in_bytes(max_shard_size)
    state = merged_state(model, condition)
    detach(model)  # `save_pretrained` would write the names of the adapted layers
    model.load_state_dict(state)
    with new_folder(folder) as temporary:
        try:
            transformers_model.save_pretrained(temporary, **({} if size is None else {"max_shard_size": size}))
        except SafetensorError as error:  # which stands for the error of a full disk
            raise ValueError(f"{folder}: could not be written ({error}); there is no such folder") from None
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        _copy_processor_files(name, temporary)


def _copy_processor_files(name: str, folder: Path) -> None:
    """Copy what prepares the inputs of a base, and what its tokenizer has read, unless it is in the folder already."""
    from transformers.utils import cached_file

    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    for file in PROCESSOR_FILES:
        stored = cached_file(name, file, **options) if name and not (folder / file).exists() else None
        if stored is not None:
            shutil.copyfile(stored, folder / file)


def _size_in_bytes(text: str) -> int:
    from transformers.utils.hub import convert_file_size_to_int

    try:
        return int(convert_file_size_to_int(text))
    except ValueError:
        raise ValueError(f"max_shard_size {text!r}: expected an integer and its unit, such as 2GB") from None


def _largest_shard(name: str) -> int | None:
    """Return the bytes of tensors in the largest weight file of a folder or of a name on the Hub.

    None if the weights are in a single file, or if there is nothing of that name.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, **options) if name else None
    if index is None:
        return None
    files = {*json.loads(Path(index).read_text())["weight_map"].values()}  # the map has an entry for each tensor
    return max(_tensor_bytes(Path(index).with_name(file)) for file in files)


def _tensor_bytes(path: Path) -> int:
    """Return the size of a safetensors file without its header, whose length is in the first eight bytes."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header_size
