"""A manager of transformers' continuous batching whose requests have a condition or a task each."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.rows import TokenValues, check_packed
from metalora.adapters.continuous.blocks_of_tenants import share_within_tenants
from metalora.adapters.continuous.requests import TenantRequests, TenantTable
from metalora.adapters.continuous.tenants import Prompt, is_known, tenants_of_prompts

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

FIXED_GRAPHS = ("use_cuda_graph", "use_async_batching", "varlen_compile_config", "decode_compile_config")
"""Settings under which a step replays addresses of tensors that were read in another step."""


def check_can_serve(adapter: Adapter, config: Any) -> None:
    """Check that each request can have a condition, before a manager changes the attention of the model.

    Args:
        adapter: The adapter.
        config: The `ContinuousBatchingConfig` that the caller has passed, or None.

    Raises:
        ValueError: A target cannot have a condition for each token, the configuration records or compiles steps, or
            this version of transformers runs its requests in another way.
    """
    check_packed(adapter)
    _check_config(config)
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    if not hasattr(ContinuousBatchingManager, "_create_batch_processor"):
        raise ValueError(
            "continuous batching with a condition for each request was made for transformers 5.23, and this version "
            "runs its requests in another way: use generate, or another version of transformers"
        )


def _check_config(config: Any) -> None:
    for name in (*FIXED_GRAPHS, "default_compile_level", "q_padding_interval_size", "kv_padding_interval_size"):
        setting = getattr(config, name, None)
        if any(setting) if isinstance(setting, tuple) else setting:
            raise ValueError(
                f"ContinuousBatchingConfig({name}={setting!r}): every step has other conditions, which a recorded or "
                "compiled step would not see: leave it out"
            )


def serve_tenants(manager: Any, adapter: Adapter) -> None:
    """Let the requests of a manager have conditions and tasks; do nothing for one that has been prepared before.

    `manager.add_request` and `manager.add_requests` take `condition=` and `task_ids=`.

    Args:
        manager: A `ContinuousBatchingManager` that has not been started.
        adapter: The adapter of its model.
    """
    if "add_request" in vars(manager):
        return
    settings = manager.continuous_batching_config
    settings.use_cuda_graph, settings.use_async_batching = (False, False), False
    settings.varlen_compile_config = settings.decode_compile_config = None
    requests = TenantRequests()
    manager.add_request = functools.partial(_add_request, adapter, requests, manager.add_request)
    manager.add_requests = functools.partial(_add_requests, adapter, manager.add_requests)
    manager._create_batch_processor = functools.partial(
        _create_processor, adapter, requests, manager._create_batch_processor
    )


def prompts_of(
    adapter: Adapter, inputs: Sequence[Sequence[int]], condition: Condition | None, task_ids: Any
) -> list[Prompt]:
    """Return prompts that know their tenants.

    Args:
        adapter: An adapter whose factors differ by example.
        inputs: The tokens of each prompt.
        condition: One condition for all prompts, or one for each of them, or None.
        task_ids: One task for all prompts, or one for each of them, or None.
    """
    check_reachable(adapter)
    tenants = tenants_of_prompts(adapter, inputs, condition, task_ids)
    return [Prompt(tokens, tenant) for tokens, tenant in zip(inputs, tenants, strict=True)]


def check_reachable(adapter: Adapter) -> None:
    """Raise a ValueError inside of `disabled()`, which holds for this thread and not for that of a continuous run."""
    if not adapter.current().enabled:
        raise ValueError(
            "continuous batching inside of disabled(): it runs in a thread of its own, where the adapter stays on: use "
            "generate, or detach the adapter"
        )


def _add_request(
    adapter: Adapter,
    requests: TenantRequests,
    own: Callable[..., str | None],
    input_ids: Sequence[int],
    request_id: str | None = None,
    *args: Any,
    condition: Condition | None = None,
    task_ids: Any = None,
    **kwargs: Any,
) -> str | None:
    """Add a request under a condition and a task."""
    if isinstance(input_ids, Prompt):
        prompt = input_ids
    else:
        _check_is_known(adapter, condition)
        prompt = prompts_of(adapter, [input_ids], condition, task_ids)[0]
    name = f"req_{uuid.uuid4().hex}" if request_id is None else request_id
    requests.add(name, prompt.tenant)  # before the run may see the request
    added = None
    try:
        added = own(prompt, name, *args, **kwargs)
    finally:
        if added is None:
            requests.discard(name)
    return added


def _add_requests(
    adapter: Adapter,
    own: Callable[..., list[str]],
    inputs: Sequence[Sequence[int]],
    *args: Any,
    condition: Condition | None = None,
    task_ids: Any = None,
    **kwargs: Any,
) -> list[str]:
    """Add requests under one condition and task for all, or one for each of them."""
    if all(isinstance(prompt, Prompt) for prompt in inputs):
        return own(inputs, *args, **kwargs)
    _check_is_known(adapter, condition)
    return own(prompts_of(adapter, inputs, condition, task_ids), *args, **kwargs)


def _check_is_known(adapter: Adapter, condition: Condition | None) -> None:
    """Raise a ValueError if a condition is to be made from a prompt while the run uses the model."""
    if not is_known(adapter, condition):
        raise ValueError(
            "add_request: the condition is made from the prompt, which needs the model that is running: pass "
            "condition=adapter.condition(prompt), made before the run, or call generate_batch"
        )


def _create_processor(adapter: Adapter, requests: TenantRequests, own: Callable[[], Any]) -> Any:
    """Make the processor of a run, or take the one that is there; every step of it runs under its conditions."""
    processor = own()
    if "_generation_step" in vars(processor):
        return processor
    share_within_tenants(processor.cache, requests)
    # The model would take the hidden states that it needs logits of, and an adapted head would get fewer than tokens.
    if any(adapter.model.get_submodule(path) is _head(adapter.model) for path in adapter.layers):
        processor.model_runner._model_supports_logits_to_keep = False
    processor._generation_step = functools.partial(
        _step, adapter, requests, TenantTable(), processor, processor._generation_step
    )
    return processor


def _head(model: nn.Module) -> nn.Module | None:
    head = getattr(model, "get_output_embeddings", None)
    return head() if callable(head) else None


def _step(
    adapter: Adapter,
    requests: TenantRequests,
    table: TenantTable,
    processor: Any,
    own: Callable[[nn.Module], None],
    model: nn.Module,
) -> None:
    """Run one step: each token of its packed row under the values of the tenant whose request it belongs to."""
    scheduler = processor.scheduler
    requests.keep_only({*scheduler.active_requests, *scheduler.waiting_requests})
    batch = processor.inputs_and_outputs.requests_in_batch
    tenants = [requests.tenant(future.state.request_id) for future in batch]
    if len({tenant.salt for tenant in tenants}) == 1:
        values = tenants[0].values
    else:
        values = TokenValues(table.take(tenants, [future.query_length for future in batch]))
    with adapter.using(values):
        own(model)
