"""`load`: put a saved adapter on its base, or say in one clear error why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn

from metalora._util.plain_values import parse_json
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.container import CONTAINER_NAME, container_of
from metalora.integrations.peft.registration import NAME
from metalora.integrations.peft.wrapping import wrap
from metalora.io.adapter_file import ANOTHER_BASE
from metalora.io.base_samples import check_samples, sample_base
from metalora.io.fingerprint import fingerprint

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"


def load(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    check_base: bool = True,
) -> PeftModel:
    """Put the adapter of a folder, or of the Hub, on its base.

    Args:
        model: The base model, or a PeftModel that already has other adapters.
        folder: A folder that `save_pretrained` wrote, or the name of a repository on the Hub.
        adapter_name: Name of the adapter in the model.
        is_trainable: Whether the adapter is trained further.
        check_base: Whether to refuse a base with other weights than the adapter was trained on, for example the same
            ones in 16 bits, and a folder that does not say on which base it was trained.

    Returns:
        The model, which takes conditions and task ids, see `wrap`.

    Raises:
        ValueError: A file is missing or damaged, the adapter is of another kind, or the base is another one. Nothing
            is changed then.

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
    if Path(folder).is_dir():  # otherwise it may be the name of a repository, which PEFT downloads
        _check_files(Path(folder))
    elif Path(folder).exists() or str(folder).startswith((".", "/", "~")):
        raise ValueError(f"{folder}: no such folder")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, TensorNetworkConfig):
        raise ValueError(
            f"{folder}: peft_type is {config.peft_type.value!r}, expected {NAME!r}; peft.PeftModel.from_pretrained "
            "loads it, and metalora.io.lora.import_.load_lora makes a LoRA an adapter of this library"
        )
    if check_base:
        _check_base(model, folder, config)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
        else:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=is_trainable)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return wrap(model)


def _check_files(folder: Path) -> None:
    """Raise a ValueError if files are missing or damaged, or do not belong together."""
    config = _read_config(folder)
    if config["peft_type"] != NAME or (folder / PICKLE_FILE).is_file():  # PEFT reads the pickle, we do not open it
        return
    names = _tensor_names(folder)
    placement = config.get("placement") or {}
    expected = set(placement.get("tensors", names))
    for name in sorted(expected ^ names):
        problem = "missing" if name in expected else "not expected"
        raise ValueError(f"{folder / TENSOR_FILE}: tensor {name!r} is {problem}")


def _read_config(folder: Path) -> dict[str, Any]:
    """The contents of adapter_config.json, which has a `peft_type`."""
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {CONFIG_FILE}, expected the folder of a saved adapter") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: not JSON ({error})") from None
    config: Any = parse_json(text, str(folder / CONFIG_FILE))
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{folder / CONFIG_FILE}: no peft_type, expected {NAME!r}")
    return config


def _tensor_names(folder: Path) -> set[str]:
    """The names that the adapter's tensors have in the adapter itself."""
    prefix = f"{CONTAINER_NAME}.metalora_adapters."
    if not (folder / TENSOR_FILE).is_file():
        raise ValueError(f"{folder}: no {TENSOR_FILE}, expected the folder of a saved adapter")
    try:
        with safe_open(folder / TENSOR_FILE, "pt") as file:
            keys = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSOR_FILE}: truncated or damaged ({error})") from None
    # The other tensors of the file are those of modules_to_save.
    return {key.partition(prefix)[2] for key in keys if prefix in key}


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
    paths = list(dict(base.named_modules()) if container is None else container.targets)
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
