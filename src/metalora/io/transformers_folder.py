"""A merged model as a folder of `transformers`, which from_pretrained reads, and so lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from metalora._util.files import check_new_folder, new_folder
from metalora._util.shown import shown
from metalora.adapters.attach import detach
from metalora.adapters.conditioning.condition import Condition
from metalora.io.merged_model import merged_state
from metalora.zoo import same_fresh_weights


def load_base(folder: str, kind: str) -> tuple[nn.Module, Any]:
    """Load a model of `transformers` and its tokenizer.

    Args:
        folder: A folder, or a name on the Hub.
        kind: Name of the class of the model, such as LlamaForCausalLM.

    Returns:
        The model in evaluation mode, and its tokenizer or None.

    Raises:
        ValueError: `transformers` has no such class, or there is no such model.
    """
    import transformers

    model_class: Any = getattr(transformers, kind, None)
    is_of_models = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not is_of_models:
        raise ValueError(f"the adapter's base is a {shown(kind)}, which is not a class of models of transformers")
    try:
        with same_fresh_weights():
            model = model_class.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"model hf:{folder}: {str(error).splitlines()[0]}") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):  # a vision model, for example, has none
        tokenizer = None
    return model.eval(), tokenizer


def save_merged_folder(
    model: nn.Module,
    folder: str | Path,
    tokenizer: Any = None,
    condition: Condition | None = None,
    max_shard_size: str | None = None,
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

    Raises:
        ValueError: The model is not one of `transformers` or has no adapter, the size is not readable, or the folder
            is there already and not empty, or cannot be written; then there is no such folder.
    """
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{type(model).__name__} is not a model of transformers, so no folder can be written")
    check_new_folder(folder)
    transformers_model: Any = model
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
