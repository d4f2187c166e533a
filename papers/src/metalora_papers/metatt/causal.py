"""Causal language models: an adapter fitted on answers, judged by which choice the model finds most likely."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.bench.store import finished_row
from metalora.io.adapter_file import round_as_saved
from metalora.methods.registry import get_method
from metalora.training.loop import fit
from metalora.zoo import architectures
from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.commonsense import Commonsense, Question

TRAIN_SEED, TEST_SEED = 0, 9_000_000
IGNORED = -100  # a label that no loss sees


@dataclass(frozen=True)
class Sample:
    """Token ids of a prompt with its response, which begins at `start`; the task's number, None where it is unknown."""

    ids: tuple[int, ...]
    start: int
    task: int | None = None


def load_causal(name: str, dtype: str = "float32") -> tuple[nn.Module, Any]:
    """A causal language model and its tokenizer, from hf:FOLDER_OR_ID or a known name; ValueError if it is not there.

    Texts are padded on the right, with the end-of-text token where a tokenizer has no pad token (as Llama's); neither
    attention nor loss sees a padded place. ValueError too for a tokenizer with neither.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    known = architectures()
    if name not in known and not name.startswith("hf:"):
        raise ValueError(f"model {name!r}: expected hf:FOLDER_OR_ID or a known name{nearest(name, ['hf:', *known])}")
    folder = known[name]["hub"] if name in known else name.removeprefix("hf:")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(f"model {name!r}: its tokenizer has neither a pad token nor an end-of-text token")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device=device, dtype=getattr(torch, dtype)).requires_grad_(False).eval(), tokenizer


def samples(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, *, end: bool = False) -> list[Sample]:
    """Prompts with their responses as tokens; the response is all that a prompt alone is not the beginning of.

    end: add the end-of-text token, for training. A text that is too long loses the beginning of its prompt (not a
    begin-of-text token), with a warning. ValueError: a response that does not fit into max_length.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    wholes = tokenizer([prompt + response for prompt, response in pairs])["input_ids"]
    found, shortened = [], 0
    for prompt, whole in zip(prompts, wholes, strict=True):
        start = next((k for k, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
        if end and tokenizer.eos_token_id is not None and whole[-1] != tokenizer.eos_token_id:
            whole = [*whole, tokenizer.eos_token_id]
        cut = max(0, len(whole) - max_length)
        if start - cut < 1:
            raise ValueError(f"max_length {max_length}: a response of {len(whole) - start} tokens leaves no prompt")
        shortened += cut > 0
        first = whole[:1] if whole[0] == tokenizer.bos_token_id else whole[cut : cut + 1]
        found.append(Sample((*first, *whole[cut + 1 :]), start - cut))
    if shortened:
        warnings.warn(
            f"{shortened} of {len(found)} texts are longer than max_length {max_length}: their prompts were shortened",
            stacklevel=2,
        )
    return found


def padded(batch: Sequence[Sample], pad: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Ids and attention mask, padded on the right, and labels that ignore prompts and padding: all (batch, token)."""
    longest = max(len(sample.ids) for sample in batch)
    ids = torch.full((len(batch), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        mask[row, :n] = 1
        labels[row, sample.start : n] = ids[row, sample.start : n]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)


def log_likelihoods(model: nn.Module, batch: Sequence[Sample], pad: int, by_task: bool = False) -> Tensor:
    """The sum of log p(token | tokens before it) over every response: (batch,).

    by_task: the adapter takes the task of every sample.
    """
    inputs, labels = padded(batch, pad, next(model.parameters()).device)
    more = {"task_ids": torch.tensor([sample.task for sample in batch])} if by_task else {}
    logits = model(**inputs, **more, use_cache=False).logits[:, :-1]
    wanted = labels[:, 1:] != IGNORED
    lost = F.cross_entropy(logits[wanted].float(), labels[:, 1:][wanted], reduction="none")  # (response token,)
    rows = wanted.nonzero()[:, 0]
    return -torch.zeros(len(batch), device=lost.device).index_add(0, rows, lost)


class CausalExperiment:
    """The questions of one run: batches, the step loss, the scores."""

    def __init__(self, config: CausalRunConfig):
        check(config)
        self.config = config
        self.corpus = Commonsense(config.data_root, by_task=config.by_task)
        self.model, self.tokenizer = load_causal(config.model, config.dtype)
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad

    def loss(self, adapter: Adapter) -> Callable[[int], Tensor]:
        """k -> cross-entropy on the responses of batch k, so that a step's mean is the mean over all its tokens.

        ValueError: fewer training questions than a step takes.
        """
        config, train = self.config, self.train_samples()
        of_step = config.batch * config.train.accumulate
        if len(train) < of_step:
            raise ValueError(f"commonsense: {len(train)} training questions are less than a step of {of_step}")

        def step_loss(k: int) -> Tensor:
            step, micro = divmod(k, config.train.accumulate)
            chosen = [train[row] for row in self.rows(step, len(train), of_step)]
            tokens = sum(len(sample.ids) - sample.start for sample in chosen) / config.train.accumulate
            batch = chosen[micro * config.batch : (micro + 1) * config.batch]
            return -log_likelihoods(self.model, batch, self.pad, bool(adapter.task_keys)).sum() / tokens

        return step_loss

    def rows(self, step: int, n: int, of_step: int) -> list[int]:
        """The questions of a step: every epoch in an order of its own."""
        epoch, place = divmod(step, n // of_step)
        generator = torch.Generator().manual_seed(self.config.seed * 10_007 + epoch * 101)
        return torch.randperm(n, generator=generator)[place * of_step : (place + 1) * of_step].tolist()

    def train_samples(self) -> list[Sample]:
        """The training questions with their right responses, as tokens."""
        config, found = self.config, []
        for source in self.corpus.sources(config.tasks, "train"):
            questions = self.corpus.questions(source, "train", config.examples, TRAIN_SEED)
            pairs = [(one.prompt, one.choices[one.answer]) for one in questions]
            found += self._of_task(source, samples(self.tokenizer, pairs, config.max_length, end=True))
        return found

    def _of_task(self, task: str, found: Sequence[Sample]) -> list[Sample]:
        number = self.config.tasks.index(task) if task in self.config.tasks else None
        return [Sample(one.ids, one.start, number) for one in found]

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Accuracy of every task, and the mean: the answer is the choice of the largest log-likelihood."""
        config, accuracy = self.config, {}
        for source in self.corpus.sources(config.tasks, config.split):
            questions = self.corpus.questions(source, config.split, config.test_examples, TEST_SEED)
            answers = self.answers(source, questions, adapter)
            right = sum(given == one.answer for given, one in zip(answers, questions, strict=True))
            accuracy[source] = right / len(questions)
        return {"accuracy": accuracy, "mean": sum(accuracy.values()) / len(accuracy)}

    @torch.no_grad()
    def answers(self, task: str, questions: Sequence[Question], adapter: Adapter | None) -> list[int]:
        """The number of the most likely choice of every question; ValueError for likelihoods that are not finite."""
        by_task = adapter is not None and bool(adapter.task_keys)
        pairs = [(one.prompt, choice) for one in questions for choice in one.choices]
        all_samples = self._of_task(task, samples(self.tokenizer, pairs, self.config.max_length))
        size = self.config.batch
        parts = [
            log_likelihoods(self.model, all_samples[k : k + size], self.pad, by_task)
            for k in range(0, len(all_samples), size)
        ]
        found = torch.cat(parts)
        if not torch.isfinite(found).all():
            raise ValueError(f"{task}: log-likelihoods are not finite in {self.config.dtype}; try another dtype")
        return [int(scores.argmax()) for scores in found.split([len(one.choices) for one in questions])]


def check(config: CausalRunConfig) -> None:
    """ValueError for settings that cannot work, before anything is loaded."""
    adapter = config.adapter
    if adapter is None or adapter.tasks == 1 or "task" not in get_method(adapter.method).network.modes:
        return
    if not config.by_task:
        raise ValueError(f"{adapter.method} needs the task of every question: by_task: true, with <task>/train.json")
    if adapter.tasks != len(config.tasks):
        raise ValueError(f"{adapter.method}: tasks is {adapter.tasks}, expected {len(config.tasks)}, those of the run")


def execute_causal(
    config: CausalRunConfig, *, checkpoint: Path | None = None, on_step: Callable[[int, float], None] | None = None
) -> tuple[dict, Adapter | None]:
    """Train and score one run: the row, and the adapter, still attached to its model."""
    start = time.monotonic()
    experiment = CausalExperiment(config)
    adapter, losses = None, []
    if config.adapter is not None:
        adapter = attach(experiment.model, config.adapter)
        losses = fit(
            experiment.model, adapter, experiment.loss(adapter), config.train, seed=config.seed,
            checkpoint=checkpoint, on_step=on_step,
        )  # fmt: skip
        round_as_saved(adapter, getattr(torch, config.train.store))
    results = experiment.evaluate(adapter)
    results |= {
        "num_params": adapter.num_params() if adapter is not None else 0,
        "loss": sum(losses[-20:]) / len(losses[-20:]) if losses else None,
    }
    return finished_row(config, results, start), adapter
