"""The weights W + Delta W of the plain model, without any adapter in it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora.adapters.attach import adapter_of
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.merge import merge, unmerge
from metalora.adapters.merged_state import is_mark


def merged_state(model: nn.Module, condition: Condition | None = None) -> dict[str, Tensor]:
    """Return the state of the plain model with W + Delta W as the weights of its targets.

    Args:
        model: A model with an adapter; it is unmerged when the call ends.
        condition: The condition of one example or task, for an adapter whose factors depend on one.

    Returns:
        Copies on the CPU, with the names that `state_dict` of the plain model has.

    Raises:
        ValueError: The model has no adapter, or Delta W depends on a condition and none is given.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> sorted(merged_state(model))
        ['0.bias', '0.weight']
    """
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"save_merged: {type(model).__name__} has no adapter")
    merge(model, condition)
    try:
        of_adapter = {id(value) for value in (*adapter.parameters(), *adapter.buffers())}
        state = {}
        # keep_vars, because otherwise the values are new tensors, which have other ids.
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) not in of_adapter and not is_mark(name):
                plain_name = name.replace(".base.", ".")  # an adapted layer holds the original one as `base`
                state[plain_name] = value.detach().to("cpu").contiguous().clone()
        return state
    finally:
        unmerge(model)


def save_merged(model: nn.Module, path: str | Path, condition: Condition | None = None) -> None:
    """Write the state of the plain model with W + Delta W as the weights of its targets, a safetensors file.

    Args:
        model: A model with an adapter; it is unmerged when the call ends.
        path: The file to write.
        condition: The condition of one example or task, for an adapter whose factors depend on one.

    Raises:
        ValueError: As `merged_state`, or the file could not be written.

    Example:
        >>> import tempfile
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(model, f"{folder}/merged.safetensors")
    """
    write_atomically(path, dump_tensors(merged_state(model, condition)))
