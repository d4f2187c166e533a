"""The common start of several processes that train together: the same facts, and the numbers of process 0."""

from __future__ import annotations

import torch
from torch import nn

from metalora._util.processes import check_equal, process_count
from metalora.adapters.adapter import Adapter
from metalora.config import TrainConfig, to_dict
from metalora.training.checkpoint import base_of_run
from metalora.training.parameters import TrainedParameters


def start_together(
    model: nn.Module,
    adapter: Adapter | None,
    extra_module: nn.Module | None,
    trained: TrainedParameters,
    config: TrainConfig,
) -> None:
    """Check that all processes train the same, and give them the numbers that process 0 starts from.

    Averaged gradients keep parameters equal only if they are equal at the start, and starts that were computed
    (decompositions, calibrations) may differ in their last bits between machines.

    Args:
        model: The model with the adapter.
        adapter: The adapter; None trains `extra_module` alone.
        extra_module: A further module that is trained.
        trained: Their parameters.
        config: The configuration of the run.

    Raises:
        ValueError: In all processes, if the configuration, the adapter, what else is trained, or the frozen base
            differs.

    Example:
        >>> head = nn.Linear(2, 2)
        >>> start_together(head, None, head, TrainedParameters(None, head), TrainConfig())
    """
    if process_count() == 1:
        return
    facts = {
        "the configuration of the training": to_dict(config),
        "the adapter, or the shapes of what else is trained": trained.identity(),
        "the frozen base": base_of_run(model, adapter, extra_module),
    }
    check_equal(facts, "fit")
    _take_numbers_of_process_0(adapter, extra_module, trained)


@torch.no_grad()
def _take_numbers_of_process_0(
    adapter: Adapter | None, extra_module: nn.Module | None, trained: TrainedParameters
) -> None:
    tensors = list(trained.parameters)
    for module in (adapter, extra_module):  # buffers too: frozen factors, and means that features are standardised by
        tensors += [] if module is None else module.buffers()  # type: ignore[arg-type]
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        numbers = tensor.contiguous()  # which a broadcast needs, and a weight in channels_last is not
        torch.distributed.broadcast(numbers, src=0)
        tensor.copy_(numbers)
