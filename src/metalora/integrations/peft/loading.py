"""`load`: put a saved adapter on its base, or say in one clear error why not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from metalora._util.hub import local_folder
from metalora._util.shown import cut
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.held_matrix import paths_in_order
from metalora.integrations.peft.config import SOURCE, Source, TensorNetworkConfig
from metalora.integrations.peft.container import container_of
from metalora.integrations.peft.folder import CONFIG_FILE, check_folder
from metalora.integrations.peft.registration import NAME
from metalora.integrations.peft.wrapping import wrap
from metalora.io.adapter_file import ANOTHER_BASE
from metalora.io.base_samples import check_samples, sample_base
from metalora.io.fingerprint import fingerprint

OF_PEFT = (TypeError, KeyError, AttributeError, IndexError, RuntimeError, OSError)
"""What PEFT raises for values and tensors that it does not expect."""


def load(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    check_base: bool = True,
    extractor: nn.Module | None = None,
    allow_download: bool = False,
    revision: str | None = None,
) -> PeftModel:
    """Put the adapter of a folder, or of the Hub, on its base.

    Args:
        model: The base model, or a PeftModel that already has other adapters.
        folder: A folder that `save_pretrained` wrote, or the name of a repository on the Hub, OWNER/NAME.
        adapter_name: Name of the adapter in the model.
        is_trainable: Whether the adapter is trained further.
        check_base: Whether to refuse a base with other weights than the adapter was trained on, for example the same
            ones in 16 bits, and a folder that does not say on which base it was trained.
        extractor: The network that makes the features, for an adapter with condition source "extractor".
        allow_download: Whether an extractor that the folder names may be downloaded.
        revision: A branch, a tag or a commit of the repository; None: its main branch.

    Returns:
        The model, which takes conditions and task ids, see `wrap`.

    Raises:
        ValueError: A file is missing or damaged, a number is not finite, the adapter is of another kind, the base is
            another one, the repository cannot be read or holds something else, or an extractor would be downloaded.
            Nothing is changed then.

    Example:
        >>> import peft, tempfile, torch, metalora.peft
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model = peft.get_peft_model(base, metalora.peft.LoTRConfig(r=2, target_modules=["0"]))
        >>> folder = tempfile.mkdtemp()
        >>> model.save_pretrained(folder)
        >>> loaded = metalora.peft.load(model.unload(), folder)
        >>> loaded(torch.zeros(3, 6)).shape
        torch.Size([3, 4])
    """
    folder = local_folder(folder, CONFIG_FILE, "an adapter of PEFT", revision)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    check_folder(folder)
    token = SOURCE.set(Source(extractor, allow_download))
    try:
        with unchanged_on_error(model, extractor), _errors_that_name(folder):
            _check_kind_and_base(model, folder, check_base)
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
            else:
                model = PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=is_trainable)
            return wrap(model)
    finally:
        SOURCE.reset(token)


@contextmanager
def _errors_that_name(folder: str | Path) -> Iterator[None]:
    """Make every error of the block a ValueError that names a folder; one of a full memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(str(folder)) else f"{folder}: {message}") from None
    except OF_PEFT as error:
        reason = cut(" ".join(str(error).split()))
        raise ValueError(f"{folder}: cannot be loaded ({type(error).__name__}: {reason})") from None


def _check_kind_and_base(model: nn.Module, folder: str | Path, check_base: bool) -> None:
    """Raise a ValueError if an adapter is not one of this library, or, if asked, was trained on another base."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, TensorNetworkConfig):
        raise ValueError(
            f"{folder}: peft_type is {config.peft_type.value!r}, expected {NAME!r}; peft.PeftModel.from_pretrained "
            "loads it, and metalora.io.lora.import_.load_lora makes a LoRA an adapter of this library"
        )
    if check_base:
        _check_base(model, folder, config)


def _check_base(model: nn.Module, folder: str | Path, config: TensorNetworkConfig) -> None:
    """Raise a ValueError if a base lacks an adapted layer, or has other weights there."""
    base: nn.Module = model.get_base_model() if isinstance(model, PeftModel) else model
    saved = config.placement
    if saved is None:
        raise ValueError(
            f"{folder}: {CONFIG_FILE} does not say on which base the adapter was trained, expected a field "
            f"'placement'{ANOTHER_BASE}"
        )
    if saved["base"]["fingerprint"] is None:  # the base was quantised or sharded
        return
    container = container_of(base)
    # The container's paths are those of the base before its layers were replaced.
    paths = paths_in_order(base) if container is None else container.paths
    for target_path in saved["targets"]:
        if target_path not in paths:
            raise ValueError(
                f"{folder}: made for a {saved['base']['class']}; {type(base).__name__} has no {target_path!r}"
            )
    # The fingerprint depends on the order of the model, which JSON does not keep: PEFT sorts the keys.
    target_paths = [path for path in paths if path in saved["targets"]]
    older = {"weights": fingerprint(base, target_paths)}
    check_samples({"weights": saved["base"]["fingerprint"]}, older, folder, ANOTHER_BASE)
    check_samples(
        saved["base"], sample_base(base, target_paths, saved["base"].get("left_out", ())), folder, ANOTHER_BASE
    )
