"""The prompt of a call of `generate`, and how many sequences the call makes of each example."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import CACHES, Inputs

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

COUNTS = ("num_beams", "num_return_sequences")


def sequences_per_example(model: nn.Module | None, kwargs: Mapping[str, Any]) -> int:
    """Return how many sequences `generate` runs for each example: the beams, or those that it returns; 1 for a forward.

    Args:
        model: The model; its `generation_config` says what the arguments do not. None: the arguments alone count.
        kwargs: The keyword arguments of the call.

    Example:
        >>> sequences_per_example(nn.Linear(4, 2), {"num_beams": 3, "num_return_sequences": 2})
        3
    """
    counts = (setting(model, kwargs, name) for name in COUNTS)
    return max((count for count in counts if isinstance(count, int)), default=1)


def setting(model: nn.Module | None, kwargs: Mapping[str, Any], name: str) -> Any:
    """Return a setting of `generate`: from the arguments, else from `generation_config`, else from the model's.

    Example:
        >>> setting(nn.Linear(4, 2), {"pad_token_id": 0}, "pad_token_id")
        0
    """
    configurations = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    values = (kwargs.get(name), *(getattr(configuration, name, None) for configuration in configurations))
    return next((value for value in values if value is not None), None)


def prompt_of(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the inputs of a forward that reads the prompt of a call of `generate`, as `generate` prepares them.

    Args:
        model: A model of transformers.
        args: The positional arguments of the call.
        kwargs: Its keyword arguments.

    Returns:
        The inputs by name, with a mask and positions that leave out the padding; None if the call has no prompt, or if
        the model's forward does not name it.

    Example:
        >>> class Decoder(nn.Module):
        ...     def forward(self, input_ids, attention_mask=None):
        ...         return input_ids
        >>> prompt = prompt_of(Decoder(), (), {"inputs": torch.tensor([[0, 5]]), "pad_token_id": 0, "max_length": 9})
        >>> prompt["attention_mask"]
        tensor([[0, 1]])
    """
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    named = {
        name: value
        for name, value in kwargs.items()
        if name in accepted and name not in CACHES and isinstance(value, Tensor)
    }
    inputs = args[0] if args else kwargs.get("inputs")
    if isinstance(inputs, Tensor) and main in accepted:
        named[main] = inputs
    if "inputs_embeds" in named:
        named.pop("input_ids", None)
    if _main_tensor(main, named) is None:
        return None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return _with_start_of_answer(model, main, named, kwargs)
    if "attention_mask" in accepted and "attention_mask" not in named and "input_ids" in named:
        named["attention_mask"] = _inferred_mask(model, named["input_ids"], kwargs)
    mask = named.get("attention_mask")
    if "position_ids" in accepted and "position_ids" not in named and mask is not None and mask.ndim == 2:
        named["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return named


def examples_of(model: nn.Module, prompt: Mapping[str, Any]) -> int:
    """Return the number of examples of a prompt.

    Example:
        >>> examples_of(nn.Linear(4, 2), {"input_ids": torch.zeros(3, 5)})
        3
    """
    tensor = _main_tensor(getattr(model, "main_input_name", "input_ids"), prompt)
    assert tensor is not None, "`prompt_of` returns no prompt without one"
    return len(tensor)


def positions_of(inputs: Inputs) -> int | None:
    """Return the number of positions of a decoder's inputs.

    Example:
        >>> positions_of({"input_ids": torch.zeros(3, 5)}), positions_of(torch.zeros(3, 5))
        (5, 5)
    """
    tensor = _main_tensor("input_ids", inputs) if isinstance(inputs, Mapping) else inputs
    return tensor.shape[1] if isinstance(tensor, Tensor) and tensor.ndim > 1 else None


def check_whole_prompt(adapter: Adapter, inputs: Inputs) -> None:
    """Raise a ValueError if a forward inside of `generate` is to make a condition and does not see the prompt alone.

    Args:
        adapter: The adapter.
        inputs: The inputs of the forward.
    """
    expected = adapter.blocks.active.get().prompt
    if expected is None or torch.compiler.is_compiling():
        return
    positions = positions_of(inputs)
    if positions != expected:
        raise ValueError(
            f"a forward of generate reads {positions or 'none'} of the {expected} positions of the prompt (a prefill "
            "in chunks, candidates of an assistant, no cache, or an encoder that ran before), so that its stem would "
            "make another condition: pass condition=... to generate, such as adapter.condition(prompt)"
        )


def _main_tensor(main: str, inputs: Mapping[str, Any]) -> Tensor | None:
    for name in (main, "inputs_embeds", "input_ids"):
        if isinstance(inputs.get(name), Tensor):
            tensor: Tensor = inputs[name]
            return tensor
    return None


def _inferred_mask(model: nn.Module, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Return the mask that `generate` makes if none is passed: padding counts as such unless it also ends texts."""
    padding = setting(model, kwargs, "pad_token_id")
    ends = setting(model, kwargs, "eos_token_id")
    ends = ends.flatten().tolist() if isinstance(ends, Tensor) else ends
    if padding is None or int(padding) in (ends if isinstance(ends, list | tuple) else [ends]):
        return torch.ones_like(ids)
    return (ids != int(padding)).long()


def _with_start_of_answer(
    model: nn.Module, main: str, named: dict[str, Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Add the first token of the answer: the condition reads the encoder alone, but a forward needs both."""
    prompt = named[main] if main in named else named["inputs_embeds"]
    if "decoder_input_ids" not in named:
        start = setting(model, kwargs, "decoder_start_token_id")
        start = start if isinstance(start, int) else setting(model, kwargs, "bos_token_id") or 0
        named["decoder_input_ids"] = torch.full((len(prompt), 1), start, device=prompt.device)
    return named
