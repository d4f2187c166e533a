"""An adapter as plain LoRA in PEFT's file format: A = Left and B = Mid · Right at every target, without an SVD."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from metalora._util.files import new_folder, write_atomically
from metalora._util.user_warning import warn_user
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.convolutions import POSITION_AXES
from metalora.adapters.held_matrix import HeldMatrix
from metalora.adapters.layers.base import AdaptedLayer
from metalora.io.lora.card import card
from metalora.io.lora.exportable import check_runtime, exportable_layers
from metalora.io.lora.parameters import matrix_loras
from metalora.io.lora.peft_config import CONFIG
from metalora.io.lora.renamed_experts import taken_for_experts
from metalora.io.lora.snapshot import snapshot
from metalora.io.lora.source import TENSORS
from metalora.io.lora.tensor_names import BIAS, PREFIX
from metalora.io.lora.write import lora_config, lora_tensors
from metalora.tensornet.truncation.truncated_svd import TruncatedProduct, relative_error, truncated_svd


@dataclass(frozen=True)
class Exported:
    """A LoRA folder that was written.

    Attributes:
        folder: Its path.
        ranks: Rank of every target, by module path.
        errors: |Delta W - B A|_F / |Delta W|_F of every target; 0 unless `max_rank` truncated something.
        error: The same ratio over all targets together.
        bytes: Size of the files.
    """

    folder: str
    ranks: dict[str, int]
    errors: dict[str, float]
    error: float
    bytes: int


@torch.no_grad()
def export_lora(
    adapter: Adapter,
    folder: str | Path,
    condition: Condition | None = None,
    task: int | Literal["all"] | None = None,
    max_rank: int | None = None,
    runtime: str | None = None,
    max_lora_rank: int | None = None,
) -> list[Exported]:
    """Write a LoRA folder that `peft.PeftModel.from_pretrained` loads, completely or not at all.

    Args:
        adapter: An adapter that is not merged.
        folder: The folder to create; it may exist if it is empty.
        condition: The condition of one example, for an adapter with generated factors: the LoRA is a snapshot of it.
        task: Number of the task, for an adapter with tasks. "all" writes a folder per task: folder/task0, ...
        max_rank: Targets of a larger rank are truncated to it, optimally in the Frobenius norm.
        runtime: "vllm" refuses whatever vLLM does not serve.
        max_lora_rank: The option of that name with which the runtime is started; None: its default.

    Returns:
        One report per folder.

    Raises:
        ValueError: No condition or task is given although Delta W depends on it, or one that does not fit; the adapter
            is merged; weights are tied; PEFT's LoRA of a layer computes something else; a rank is above the limit of
            the runtime; the folder is not empty.

    Warns:
        UserWarning: PEFT takes targets for experts, because of their names, and would leave their LoRA out.

    Example:
        >>> import tempfile
        >>> from metalora import AdapterConfig, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [report] = export_lora(adapter, folder)
        ...     sorted(path.name for path in Path(folder).iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
        >>> report.ranks, report.error
        ({'0': 2}, 0.0)
    """
    layers = exportable_layers(adapter)
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"export: max_rank is {max_rank}, expected at least 1")
    if task == "all" and not adapter.task_keys:
        raise ValueError(f"export: {adapter.method.name} with tasks={adapter.config.tasks} has no tasks")
    tasks: list[int | None] = [*range(adapter.config.tasks)] if task == "all" else [task]
    # All that can be refused is refused before the first folder is made.
    values_by_task = {number: snapshot(adapter, condition, number) for number in tasks}
    check_runtime(adapter, layers, runtime, max_lora_rank, max_rank)
    taken = taken_for_experts(adapter.model, [path for path in layers if not isinstance(layers[path].base, HeldMatrix)])
    if taken and runtime is None:
        warn_user(
            f"export: PEFT takes {len(taken)} targets ({taken[0]}, ...) for experts, by their names, and leaves their "
            "LoRA out; metalora.load_lora and metalora merge have it"
        )
    reports = []
    with new_folder(folder) as temporary:
        for number, values in values_by_task.items():
            name = f"task{number}" if task == "all" else ""
            (temporary / name).mkdir(exist_ok=True)
            lora = _Lora.from_layers(layers, values, max_rank)
            size = _write(adapter, layers, lora, temporary / name, number)
            reports.append(Exported(str(Path(folder) / name), lora.ranks, lora.errors, lora.error, size))
    return reports


@dataclass(frozen=True)
class _Lora:
    """A LoRA of all targets: truncated pairs, and biases if the method has them, by module path."""

    pairs: dict[str, TruncatedProduct]
    shifts: dict[str, Tensor | None]
    magnitudes: dict[str, Tensor | None]

    @classmethod
    def from_layers(
        cls, layers: Mapping[str, AdaptedLayer], values: Mapping[str, Tensor], max_rank: int | None
    ) -> _Lora:
        """Return the LoRA of adapted layers.

        Args:
            layers: Module path -> adapted layer.
            values: Key of a factor that differs by example -> its value, (1, *factor shape).
            max_rank: The rank to which larger ones are truncated; None: none is.
        """
        condition_values = dict(values) or None
        pairs, shifts, magnitudes = {}, {}, {}
        for path, layer in layers.items():
            left, right = layer.pair(condition_values)  # (k, i, *kernel) and (k, o)
            if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
                raise ValueError(f"export: the factors of target {path!r} are not finite")
            pairs[path] = truncated_svd(left, right, max_rank or len(left))
            shifts[path] = layer.shift(condition_values)
            magnitudes[path] = layer.magnitude(condition_values)  # (o,) or None
            # The magnitude was computed with the norm of W + A B; a truncated A B would have another one.
            if magnitudes[path] is not None and pairs[path].discarded:
                raise ValueError(f"export: target {path!r} has a magnitude, so its rank cannot be lowered by max_rank")
        return cls(pairs, shifts, magnitudes)

    @property
    def ranks(self) -> dict[str, int]:
        return {path: len(pair.left) for path, pair in self.pairs.items()}

    @property
    def errors(self) -> dict[str, float]:
        return {path: pair.error for path, pair in self.pairs.items()}

    @property
    def error(self) -> float:
        return relative_error(self.pairs.values())

    @property
    def has_biases(self) -> bool:
        return any(shift is not None for shift in self.shifts.values())


def _write(adapter: Adapter, layers: Mapping[str, AdaptedLayer], lora: _Lora, folder: Path, task: int | None) -> int:
    """Write the three files of a LoRA into an existing folder; return their size in bytes."""
    tensors: dict[str, Tensor] = {}
    halves = {path: (pair.left, pair.right) for path, pair in lora.pairs.items()}
    matrices = matrix_loras(adapter.model, layers, halves)
    for matrix in matrices:
        tensors |= lora_tensors(matrix.place.name, "matrix", matrix.down, matrix.right)
    for path, pair in lora.pairs.items():
        if isinstance(layers[path].base, HeldMatrix):
            continue
        tensors |= lora_tensors(path, adapter.targets[path].kind, pair.left, pair.right)
        if lora.has_biases:  # PEFT has a bias at every target or at none
            shift = lora.shifts[path]
            shift = pair.right.new_zeros(pair.right.shape[1]) if shift is None else shift
            tensors[f"{PREFIX}{path}.{BIAS}"] = shift.detach().to("cpu").contiguous()
        magnitude = lora.magnitudes[path]
        if magnitude is not None:
            positions = [1] * POSITION_AXES.get(adapter.targets[path].kind, 0)
            shape = (1, -1, *positions) if positions else (-1,)  # PEFT's magnitude multiplies a convolution's output
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = magnitude.detach().to("cpu").reshape(shape).contiguous()
    config = lora_config(adapter, lora.ranks, matrices)
    if any(magnitude is not None for magnitude in lora.magnitudes.values()):
        config["use_dora"] = True
    if lora.has_biases:
        config["lora_bias"] = True
    base_name = config["base_model_name_or_path"]
    contents = {
        TENSORS: dump_tensors(tensors, {"format": "pt"}),
        CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "README.md": card(adapter, base_name, lora.ranks, lora.error, task).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return sum(len(content) for content in contents.values())
