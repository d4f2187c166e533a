"""`load`: a saved adapter on its base, or one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn

from metalora.integrations.peft.bank import BANK, container_of
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.registration import NAME
from metalora.integrations.peft.wrapping import wrap
from metalora.io.fingerprint import fingerprint

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def load(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    is_trainable: bool = False,
    check_base: bool = True,
) -> PeftModel:
    """Put the adapter of a folder (or of the Hub) on its base, or on a PeftModel beside others; the model is wrapped.

    check_base  refuse a base whose weights are not those that the adapter was trained on, such as one in 16 bits
    ValueError: a file that is missing or damaged, another kind of adapter, another base; nothing is changed.
    """
    if Path(folder).is_dir():
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
            return wrap(model)
        return wrap(PeftModel.from_pretrained(model, str(folder), adapter_name, is_trainable=is_trainable))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _check_files(folder: Path) -> None:
    """ValueError for files that are missing, damaged, or do not belong together."""
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {CONFIG}, expected the folder of a saved adapter") from None
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: not JSON ({error})") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{folder / CONFIG}: no peft_type, expected {NAME!r}")
    if config["peft_type"] != NAME or (folder / "adapter_model.bin").is_file():
        return
    if not (folder / TENSORS).is_file():
        raise ValueError(f"{folder}: no {TENSORS}, expected the folder of a saved adapter")
    try:
        with safe_open(folder / TENSORS, "pt") as file:
            names = {name.partition(f"{BANK}.metalora_adapters.")[2] for name in file.keys()} - {""}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{folder / TENSORS}: truncated or damaged ({error})") from None
    expected = {*(config.get("placement") or {}).get("tensors", names)}
    for name in sorted(expected ^ names):
        raise ValueError(f"{folder / TENSORS}: tensor {name!r} is {'missing' if name in expected else 'not expected'}")


def _check_base(model: nn.Module, folder: str | Path, config: TensorNetworkConfig) -> None:
    """ValueError for a base without the adapted layers, or with other weights there."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    saved = config.placement
    if saved is None or saved["base"]["fingerprint"] is None:
        return
    bank = container_of(base)
    known = bank.targets if bank is not None else dict(base.named_modules())
    missing = next((path for path in saved["targets"] if path not in known), None)
    if missing is not None:
        raise ValueError(f"{folder}: made for a {saved['base']['class']}; {type(base).__name__} has no {missing!r}")
    paths = [path for path in known if path in saved["targets"]]  # in the model's order, which JSON does not keep
    if fingerprint(base, paths) != saved["base"]["fingerprint"]:
        raise ValueError(
            f"{folder}: the base weights are not those that the adapter was trained on (fingerprints differ); "
            "check_base=False loads it all the same"
        )
