"""The folder of a fine-tuned network: adapter or network, head, preparation of inputs, classes, model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import replaced_folder, write_atomically
from metalora._util.hub import local_folder
from metalora._util.processes import default_device, one_process_writes
from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.config import from_dict, to_dict
from metalora.io.adapter_file import ADAPTER_FILE, load
from metalora.io.base_samples import check_samples, sample_base
from metalora.io.described_file import checksum
from metalora.learner.backbone import Backbone, check_no_download, load_backbone, network_of
from metalora.learner.data import TextPreprocessor, preprocessor_from_dict
from metalora.learner.data.text_preprocessing import TOKENIZER_FILES
from metalora.learner.finetuning import FineTuned
from metalora.learner.finetuning_config import DESCRIPTION_FILE, FineTuneConfig
from metalora.learner.finetuning_data import Scores
from metalora.learner.head import LinearHead
from metalora.learner.labels import TaskLabels
from metalora.learner.saving import MISFITS, message_with_folder, read_json_description, read_tensors

HEAD_FILE, NETWORK_FILE = "head.safetensors", "model.safetensors"
FILES_OF_FINE_TUNED = (DESCRIPTION_FILE, HEAD_FILE, ADAPTER_FILE, NETWORK_FILE, "README.md", *TOKENIZER_FILES)
FORMAT, VERSION = "metalora-finetuned", 1
SCHEMA = {
    "backbone": (str, type(None)),
    "class": str,
    "method": str,
    "adapter": (dict, type(None)),
    "config": dict,
    "classes": list,
    "preprocessor": {"kind": str},
    "scores": dict,
    "sha256": str,
    "base?": dict,
    "network?": str,
}
CARD = """---
library_name: metalora
tags:
- metalora
- adapter
---

# A network that metalora fine-tuned to one task

{backbone}, method {method}, {parameters:,} trained numbers. It predicts one of {classes}.

```bash
metalora predict FOLDER inbox/ --out predictions.csv
```

```python
from metalora.learner import FineTuned

model = FineTuned.from_pretrained("FOLDER")
model.predict(inputs)
```

## Evaluation

| on {inputs} inputs that were not trained on | |
|---|---|
| accuracy | {accuracy:.1f} % |
| macro-F1 | {macro_f1:.1f} % |
| accuracy of a logistic regression on the frozen features | {head_alone:.1f} % |

The best step ({step} of {steps}) was chosen by the same inputs, so the first two figures are a little too good.
"""


def save_finetuned(tuned: FineTuned, folder: str | Path) -> Path:
    """Write the folder of a fine-tuned network, completely or not at all; see `FineTuned.save_pretrained`."""
    head = _plain(tuned.head.state_dict())
    description: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "backbone": tuned.backbone.name,
        "class": type(tuned.backbone.model).__name__,
        "method": tuned.method,
        "adapter": None if tuned.adapter is None else to_dict(tuned.adapter.config),
        "config": to_dict(tuned.config),
        "classes": list(tuned.labels.classes),
        "preprocessor": tuned.backbone.preprocessor.to_dict(),
        "scores": tuned.scores_.to_dict(),
        "base": sample_base(tuned.backbone.model, (), ()),
    }
    network = _plain(tuned.backbone.model.state_dict()) if tuned.method == "full" else None
    if network is not None:
        description["network"] = _digest(network)
    description["sha256"] = checksum(description, head)
    with one_process_writes() as writes:
        if writes:
            _write(tuned, folder, head, network, description)
    return Path(folder)


def _write(
    tuned: FineTuned,
    folder: str | Path,
    head: dict[str, Tensor],
    network: dict[str, Tensor] | None,
    description: dict[str, Any],
) -> None:
    with replaced_folder(folder, FILES_OF_FINE_TUNED) as temporary:
        write_atomically(temporary / HEAD_FILE, dump_tensors(head))
        if tuned.adapter is not None:
            tuned.adapter.save(temporary / ADAPTER_FILE)
        if network is not None:
            write_atomically(temporary / NETWORK_FILE, dump_tensors(network))
        if isinstance(tuned.backbone.preprocessor, TextPreprocessor):
            tuned.backbone.preprocessor.save_tokenizer(temporary)
        write_atomically(temporary / "README.md", _card(tuned).encode())
        write_atomically(temporary / DESCRIPTION_FILE, json.dumps(description, indent=1).encode())


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors that share no memory, on the CPU."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def _card(tuned: FineTuned) -> str:
    scores = tuned.scores_
    return CARD.format(
        backbone=tuned.backbone.name or type(tuned.backbone.model).__name__,
        method=tuned.method,
        parameters=tuned.num_params(),
        classes=", ".join(map(str, tuned.labels.classes)),
        inputs=scores.inputs,
        accuracy=100 * scores.accuracy,
        macro_f1=100 * scores.macro_f1,
        head_alone=100 * scores.head_alone,
        step=scores.step,
        steps=tuned.config.steps,
    )


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return what a folder says of its fine-tuned network.

    Args:
        folder: The folder.

    Raises:
        ValueError: There is no such folder, or it is of another kind or version.
    """
    return read_json_description(folder, DESCRIPTION_FILE, FORMAT, VERSION, "a fine-tuned network", SCHEMA)


def load_finetuned(
    cls: type[FineTuned],
    folder: str | Path,
    backbone: nn.Module | str | None,
    device: str | torch.device | None,
    allow_download: bool,
    revision: str | None = None,
) -> FineTuned:
    """Load a fine-tuned network; see `FineTuned.from_pretrained`."""
    path = local_folder(folder, DESCRIPTION_FILE, "a fine-tuned network", revision)
    description = read_description(path)
    tensors = read_tensors(path / HEAD_FILE)
    network = read_tensors(path / NETWORK_FILE) if description["method"] == "full" else None
    sha256 = checksum(description, tensors)
    if sha256 != description["sha256"] or description.get("network") not in (None, _digest(network)):
        raise ValueError(f"{path}: does not match its checksum: a file was changed after it was written")
    config = from_dict(FineTuneConfig, description["config"], f"{path / DESCRIPTION_FILE}: config")
    with unchanged_on_error(network_of(backbone)):
        try:
            loaded = _backbone(path, description, backbone, allow_download)
            adapter = _restore(loaded.model, path, description, network, allow_download)
            target = torch.device(device or default_device())
            head = LinearHead(tensors["mean"].shape[0], len(description["classes"]))
            head.load_state_dict(tensors)
            scores = Scores(**description["scores"])
        except MISFITS as error:
            raise ValueError(message_with_folder(path, error)) from None
    loaded.model.to(target).eval().requires_grad_(False)
    labels = TaskLabels("classes", tuple(description["classes"]), None)
    tuned = cls(loaded, head.to(target).requires_grad_(False), labels, adapter, description["method"], config)
    tuned.scores_ = scores
    return tuned


def _restore(
    model: nn.Module,
    path: Path,
    description: dict[str, Any],
    network: dict[str, Tensor] | None,
    allow_download: bool,
) -> Adapter | None:
    """Attach the adapter of a folder, or copy its network; ValueError, and no number is changed, if they do not fit."""
    adapter = None
    if description["adapter"] is not None:
        adapter = load(model, path / ADAPTER_FILE, allow_download=allow_download)
    if network is not None:
        here = {name: value.shape for name, value in model.state_dict().items()}
        if here != {name: value.shape for name, value in network.items()}:
            raise ValueError(f"{path / NETWORK_FILE}: of another network: names or shapes differ")
        model.load_state_dict(network)
    check_samples(description.get("base", {}), sample_base(model, (), ()), path)  # older folders do not have it
    return adapter


def _digest(network: dict[str, Tensor] | None) -> str | None:
    return None if network is None else checksum({}, network)


def _backbone(
    folder: Path, description: dict[str, Any], backbone: nn.Module | str | None, allow_download: bool
) -> Backbone:
    name = description["backbone"]
    if backbone is None and name is None:
        raise ValueError(f"{folder}: its backbone, a {description['class']}, has no name: pass it as backbone=")
    if backbone is None and not allow_download:
        check_no_download(name, folder)
    preprocessor = preprocessor_from_dict(description["preprocessor"], folder)
    loaded = load_backbone(name if backbone is None else backbone, preprocessor=preprocessor)
    return replace(loaded, name=name if not isinstance(backbone, str) else backbone)
