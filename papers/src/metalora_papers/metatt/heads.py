"""Heads of an encoder: what of its last hidden states a head reads, and one head for each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR, ROBERTA = "linear", "roberta"


class Classifier(nn.Module):
    """An encoder with a head for each task.

    Args:
        encoder: An encoder of transformers.
        outputs: Task -> number of outputs of its head.
        seed: Of the initial values of the heads.
        head: "linear" for one linear layer on the mean over the tokens, scaled to unit variance; "roberta" for
            `FirstTokenHead`.
    """

    def __init__(self, encoder: Any, outputs: Mapping[str, int], seed: int, head: str = LINEAR):
        super().__init__()
        self.encoder, self.head = encoder, head
        heads = {}
        for task, count in outputs.items():
            generator = torch.Generator().manual_seed(seed + len(task))
            heads[task] = HEADS[head](encoder.config, count, generator)
        self.heads = nn.ModuleDict(heads)

    def embed(self, batch: dict[str, Tensor], task_ids: Tensor | int | None = None) -> Tensor:
        """Return what the heads read of a batch padded on the right: (text, width)."""
        more = {} if task_ids is None else {"task_ids": task_ids}
        states = self.encoder(**batch, **more).last_hidden_state  # (text, token, width)
        if self.head == ROBERTA:
            return states[:, 0]
        mask = batch["attention_mask"][..., None].to(states.dtype)
        return F.layer_norm((states * mask).sum(1) / mask.sum(1), states.shape[-1:])


class FirstTokenHead(nn.Module):
    """The head of transformers' RobertaForSequenceClassification, without dropout.

    out_proj(tanh(dense(h))), where h is the last hidden state of the first token (RoBERTa's <s>). It has no pre-trained
    values: weights are drawn with the deviation `initializer_range` of the encoder, biases are zero. BERT's own head is
    another one, a pooler that is pre-trained with the encoder.

    Args:
        config: The configuration of the encoder.
        outputs: Number of outputs.
        generator: Of the initial values.
    """

    def __init__(self, config: Any, outputs: int, generator: torch.Generator):
        super().__init__()
        width = config.hidden_size
        self.dense, self.out_proj = nn.Linear(width, width), nn.Linear(width, outputs)
        for layer in (self.dense, self.out_proj):
            _draw(layer, config.initializer_range, generator)

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (text, output) for the states (text, width) of the first token."""
        outputs: Tensor = self.out_proj(torch.tanh(self.dense(states)))
        return outputs


def _linear(config: Any, outputs: int, generator: torch.Generator) -> nn.Module:
    width = config.hidden_size
    return _draw(nn.Linear(width, outputs), width**-0.5, generator)


def _draw(layer: nn.Linear, deviation: float, generator: torch.Generator) -> nn.Linear:
    nn.init.normal_(layer.weight, 0, deviation, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


HEADS: dict[str, Callable[[Any, int, torch.Generator], nn.Module]] = {LINEAR: _linear, ROBERTA: FirstTokenHead}
