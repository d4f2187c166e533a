"""What a request runs under: the values of one tenant, and the number that keeps its key-value blocks apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from metalora.adapters.conditioning.active import values_of_generation
from metalora.adapters.conditioning.condition import Condition, Values

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

SALT_NUMBERS = 4  # of 32 bits each: what transformers hashes are tokens of this size


@dataclass(frozen=True, eq=False)
class Tenant:
    """What the requests of one tenant run under.

    Attributes:
        values: Key of a stored factor -> its value, (1, *factor shape).
        salt: Integers of 32 bits, a digest of the values: requests of equal values may share key-value blocks.
    """

    values: Values
    salt: tuple[int, ...]


class Prompt(list[int]):
    """The tokens of a request, and the tenant that has sent it.

    Attributes:
        tenant: The tenant.
    """

    def __init__(self, tokens: Sequence[int], tenant: Tenant):
        super().__init__(tokens)
        self.tenant = tenant


def tenant_of(values: Values, device: torch.device) -> Tenant:
    """Return the tenant of values (1, *factor shape), which are moved to the device of the model.

    Example:
        >>> cpu = torch.device("cpu")
        >>> tenants = [tenant_of({"C": torch.full((1, 2), number)}, cpu) for number in (0.0, 0.0, 1.0)]
        >>> tenants[0].salt == tenants[1].salt, tenants[0].salt == tenants[2].salt
        (True, False)
    """
    digest = hashlib.blake2b(digest_size=4 * SALT_NUMBERS)
    for key, value in sorted(values.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    salt = numpy.frombuffer(digest.digest(), dtype=numpy.int32).tolist()
    return Tenant({key: value.detach().to(device) for key, value in values.items()}, tuple(salt))


def tenants_of_prompts(
    adapter: Adapter, prompts: Sequence[Sequence[int]], condition: Condition | None, task_ids: Any
) -> list[Tenant]:
    """Return the tenant of each prompt; the condition is chosen as for `generate`.

    Args:
        adapter: An adapter whose factors differ by example.
        prompts: The tokens of each prompt.
        condition: One condition for all prompts, or one for each of them; None: that of a `using` block, the fixed one,
            or one that is made from each prompt.
        task_ids: One task for all prompts, or one for each of them; None for a method without tasks.

    Raises:
        ValueError: As for `generate`.
    """
    with torch.no_grad():
        values = values_of_generation(adapter, condition, task_ids, None, {}) if is_known(adapter, condition) else None
        if values is None:
            made = [adapter.condition({"input_ids": _ids(adapter, prompt)}) for prompt in prompts]
            values = values_of_generation(adapter, Condition.stack(made), task_ids, None, {})
    assert values is not None, "a condition was passed or made"
    return [tenant_of(own, adapter.model.device) for own in _of_each(values, len(prompts))]  # type: ignore[arg-type]


def is_known(adapter: Adapter, condition: Condition | None) -> bool:
    """Return True unless the condition is one that is made from the prompts."""
    block = adapter.blocks.active.get().values
    made_from_inputs = adapter.conditional and adapter.config.condition.scope == "sample"
    known = condition is not None or block is not None or adapter.fixed_condition is not None
    return known or not made_from_inputs or adapter.config.condition.source == "tensor"


def _ids(adapter: Adapter, prompt: Sequence[int]) -> Tensor:
    return torch.tensor([list(prompt)], device=adapter.model.device)  # type: ignore[arg-type]


def _of_each(values: Values, prompts: int) -> list[Values]:
    """Return the values of each prompt; a value of one example is for all of them."""
    examples = {key: len(value) for key, value in values.items()}
    wrong = next((count for count in examples.values() if count not in (1, prompts)), None)
    if wrong is not None:
        raise ValueError(
            f"generate_batch: the condition is for {wrong} examples, and there are {prompts} prompts: expected one "
            "for each of them, or a single one for all"
        )
    return [
        {key: value if examples[key] == 1 else value[row : row + 1] for key, value in values.items()}
        for row in range(prompts)
    ]
