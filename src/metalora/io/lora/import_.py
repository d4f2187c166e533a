"""Trained LoRAs of other programs as adapters of this library."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from metalora._util.hub import local_folder
from metalora._util.user_warning import warn_user
from metalora.adapters.adapter import Adapter
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.attaching import attach_dora, attach_started, attach_updates
from metalora.io.lora.peft_config import CONFIG
from metalora.io.lora.trained_lora import TrainedLora, read_trained
from metalora.io.lora.whole_modules import WholeModules, values_of_whole_modules, write_values


def load_lora(
    model: nn.Module,
    path: str | Path,
    network: str | None = None,
    subfolder: str = "",
    whole_modules: WholeModules = "refuse",
    *,
    revision: str | None = None,
) -> Adapter:
    """Attach a trained LoRA to a model, exactly.

    The method of the adapter is "lora", or "dora", "pissa" or "olora" if the LoRA is one of these. The scale of the
    LoRA is multiplied into the factors. Targets may have unequal ranks.

    Args:
        model: The base model of the LoRA, or a part of it, or one that contains it, without an adapter.
        path: A folder of PEFT or diffusers, or a file of kohya, LyCORIS (LoCon, LoHa, LoKr), diffusers, ComfyUI,
            InvokeAI or OneTrainer, in safetensors or in PyTorch's format; or the name of a repository on the Hub,
            OWNER/NAME, that holds a LoRA in PEFT's format.
        network: The network of the file to take, by the prefix of its names ("unet", "lora_te1", "encoder"); the
            others are left out. None: all, which the model must hold ("unet" and "text_encoder" as children).
        subfolder: The folder inside of `path` that holds the LoRA.
        whole_modules: What to do with modules that were trained whole beside the LoRA, such as a classifier (PEFT's
            `modules_to_save`): "load" writes them into the model, where they stay after `detach`; "leave_out" goes
            without them.
        revision: A branch, a tag or a commit of the repository; None: its main branch.

    Returns:
        The adapter.

    Raises:
        ValueError: The path does not exist, the repository cannot be read or holds something else, the LoRA is not
            readable (see `read_source`), its names do not belong to one module each, its shapes do not fit the model,
            or modules were trained whole and `whole_modules` does not say what to do with them. The model is unchanged.

    Example:
        >>> import copy, tempfile, torch
        >>> from metalora import AdapterConfig, attach
        >>> base = nn.Sequential(nn.Linear(8, 4))
        >>> model = copy.deepcopy(base)
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = adapter.export_lora(folder)
        ...     imported = load_lora(base, folder)
        >>> x = torch.ones(1, 8)
        >>> torch.allclose(base(x), model(x))
        True
    """
    marker = str(Path(subfolder) / CONFIG)
    place = local_folder(path, marker, "a LoRA of PEFT", revision, place="file or folder")
    trained = read_trained(model, place, network, subfolder)
    values = values_of_whole_modules(model, trained.whole, trained.file, whole_modules)
    adapter = _attach_trained(model, trained)
    write_values(values)
    return adapter


def _attach_trained(model: nn.Module, trained: TrainedLora) -> Adapter:
    if trained.magnitudes:
        return attach_dora(model, trained.updates, trained.magnitudes)
    if trained.start:
        return attach_started(model, trained)
    return attach_updates(model, trained.updates)


def read_any_lora(model: nn.Module, path: str | Path) -> dict[str, LowRankUpdate]:
    """Read a trained LoRA that is Delta W = up · down alone, by the module paths of its base; see `load_lora`.

    Warns:
        UserWarning: The folder also holds modules that were trained whole, such as a classifier; they are left out.
    """
    trained = read_trained(model, path)
    trained.check_is_update()
    if trained.whole:
        warn_user(f"{path}: {len(trained.whole)} tensors saved whole are left out: {next(iter(trained.whole))!r}")
    return trained.updates
