"""The prompt of a causal language model: the tokens that the condition of an example may be made from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import Inputs, token_mask
from metalora.adapters.conditioning.stages import encoder_path
from metalora.adapters.readable import is_readable

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

IGNORED = -100  # the label of a token that no loss sees, in torch and in transformers
LOSS_INPUTS = ("num_items_in_batch", "fused_lm_head", "return_token_accuracy", "skip_logits")  # of Trainer, TRL, Liger
_SEVERAL_TEXTS = (
    "a row holds several texts (packing, padding-free or continuous batches), and a condition that is made from a row "
    "is one for all of them: switch packing off, use condition scope 'constant', or attach the adapter to the model "
    "that has generate_batch"
)
PACKED = ("cu_seq_lens_q", "seq_idx")  # inputs with which transformers tells several texts in one row apart


def is_causal(model: nn.Module) -> bool:
    """Return whether a model predicts the next token of its input: a decoder of transformers with its head, or a
    module that holds one.

    Example:
        >>> is_causal(nn.Linear(4, 2))
        False
    """
    return encoder_path(model) is None and any(map(_generates, model.modules()))


def _generates(module: nn.Module) -> bool:
    can_generate = getattr(module, "can_generate", None)
    return callable(can_generate) and bool(can_generate())


def forward_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """Return the inputs of a forward as one object: by name if there are names.

    Args:
        model: The model.
        args: The positional arguments of its forward.
        kwargs: Its other arguments.

    Returns:
        The only argument; all of them by name; or the positional ones if there are no others, or if they have no names
        (`*args`).

    Example:
        >>> forward_inputs(nn.Bilinear(2, 2, 2), ("left",), {"input2": "right"})
        {'input1': 'left', 'input2': 'right'}
    """
    if not args:
        return kwargs
    if kwargs:
        parameters = list(inspect.signature(model.forward).parameters.values())[: len(args)]
        if all(parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for parameter in parameters):
            return {**{parameter.name: value for parameter, value in zip(parameters, args, strict=True)}, **kwargs}
    return args[0] if len(args) == 1 else args


def prompt_inputs(inputs: Inputs) -> Inputs:
    """Return the inputs of a causal language model with an attention mask that ends where the answer begins.

    A token belongs to the prompt if it stands before the first label that is not -100, or if `prompt_mask` says so.
    Neither of them is in the result, nor is what belongs to a loss. Even a network that is not causal, such as an
    extractor, then sees nothing of the answer.

    Args:
        inputs: What the model takes, by name; `prompt_mask`, (n, tokens), 1 or 0, counts more than `labels`.

    Returns:
        The inputs; as they are if they have neither `labels` nor `prompt_mask`, since then nothing says where an answer
        begins.

    Raises:
        ValueError: An example without a prompt, masks of different shapes, or several texts in one row.

    Example:
        >>> ids, labels = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[-100, -100, 7, -100]])
        >>> prompt_inputs({"input_ids": ids, "labels": labels})["attention_mask"]
        tensor([[1, 1, 0, 0]])
    """
    if not hasattr(inputs, "keys"):
        return inputs
    named = dict(cast(Mapping[str, Any], inputs))
    labels, prompt = named.pop("labels", None), named.pop("prompt_mask", None)
    for name in LOSS_INPUTS:  # they ask for labels
        named.pop(name, None)
    _check_one_text_per_row(named)
    if prompt is None and labels is None:
        return named
    mask = prompt.bool() if prompt is not None else (labels != IGNORED).cumsum(1) == 0
    attended = token_mask(named)
    for other, name in ((attended, "attention_mask"), (named.get("input_ids"), "input_ids")):
        if other is not None and other.shape != mask.shape:
            what = "labels" if prompt is None else "prompt_mask"
            raise ValueError(f"{what} {tuple(mask.shape)}: expected the shape of {name}, {tuple(other.shape)}")
    if attended is not None:
        mask = mask & attended.bool()
    _check_every_row_has_a_prompt(mask)
    return {**named, "attention_mask": mask.long()}


def check_prompt_is_known(adapter: Adapter, inputs: Inputs) -> None:
    """Raise a ValueError if a condition is about to be trained on inputs that may hold the answer.

    A condition made from the answer tells the adapter what it has to predict: the training loss goes to zero, and at
    decoding, where there is no answer yet, the model is worse than without an adapter.

    Args:
        adapter: The adapter of a causal language model.
        inputs: What its condition is to be made from.
    """
    if not torch.is_grad_enabled() or not any(weight.requires_grad for weight in adapter.parameters()):
        return
    if hasattr(inputs, "keys"):
        named = cast(Mapping[str, Any], inputs)  # PEFT passes labels=None
        if any(name in named.keys() and named[name] is not None for name in ("labels", "prompt_mask")):
            return
    raise ValueError(
        f"{adapter.method.name} on a causal language model makes its condition from the prompt, and nothing says where "
        "the prompt ends: pass labels (-100 at the tokens of the prompt) or prompt_mask (1 at them; ones if there is "
        "no answer in the inputs), or run under torch.no_grad() if this is no training. A condition made from the "
        "answer would give the answer away"
    )


def _check_every_row_has_a_prompt(mask: Tensor) -> None:
    if not is_readable(mask):  # the features would not be finite, which the mapping net refuses
        return
    has_prompt = mask.any(1).tolist()  # a GPU is waited for once
    if not all(has_prompt):
        empty = has_prompt.index(False)
        raise ValueError(
            f"example {empty} has no prompt: its first token is an answer already, so there is nothing to make a "
            "condition from. Set the labels of the prompt to -100 (a data set of prompts and completions in TRL); for "
            "texts without a prompt use condition scope 'constant', or scope 'support' with a condition that you make"
        )


def check_not_packed(inputs: Inputs) -> None:
    """Raise a ValueError if the inputs of a forward say that a row holds several texts, so that it has one condition.

    Args:
        inputs: What the model takes.
    """
    if isinstance(inputs, Mapping) and any(inputs.get(name) is not None for name in PACKED):
        raise ValueError(_SEVERAL_TEXTS)


def _check_one_text_per_row(inputs: Mapping[str, Any]) -> None:
    positions = inputs.get("position_ids")
    packed = any(inputs.get(name) is not None for name in PACKED)
    if isinstance(positions, Tensor) and positions.ndim == 2 and is_readable(positions):
        attended = token_mask(inputs)
        starts_again = positions[:, 1:] < positions[:, :-1]
        if attended is not None and attended.shape == positions.shape:
            starts_again = starts_again & attended[:, 1:].bool() & attended[:, :-1].bool()
        packed = packed or bool(starts_again.any())
    if packed:
        raise ValueError(_SEVERAL_TEXTS)
