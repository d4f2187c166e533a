"""Causal language models: an adapter fitted on answers, judged by which choice the model finds most likely."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.methods.registry import get_method
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


class CausalSuite:
    """The questions of one run on a causal language model; a `metalora_papers.suite.Suite`.

    Args:
        config: The configuration.

    Raises:
        ValueError: Settings that contradict each other, an unknown model or task, or missing files.
    """

    averaged_losses = 20
    example = None

    def __init__(self, config: CausalRunConfig):
        check(config)
        self.config = config
        self.corpus = Commonsense(config.data_root, by_task=config.by_task)
        self.model, self.tokenizer = load_causal(config.model, config.dtype)
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad
        self._training_samples: list[Sample] = []

    @property
    def trained_model(self) -> nn.Module:
        """The model; nothing but the adapter is trained."""
        return self.model

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Before training, read the training questions; ValueError if they are fewer than a step takes."""
        if not training or adapter is None:
            return
        self._training_samples = self.train_samples()
        if len(self._training_samples) < self.step_size:
            raise ValueError(
                f"commonsense: {len(self._training_samples)} training questions are less than a step of "
                f"{self.step_size}"
            )

    @property
    def step_size(self) -> int:
        """Questions of one step of the optimiser."""
        return self.config.batch * self.config.train.accumulate

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the cross-entropy on the responses of batch `step`.

        The mean over the batches of one step of the optimiser is the mean over all tokens of its responses.
        """
        batch_size, accumulate = self.config.batch, self.config.train.accumulate
        optimiser_step, number = divmod(step, accumulate)
        rows = self.rows(optimiser_step, len(self._training_samples), self.step_size)
        chosen = [self._training_samples[row] for row in rows]
        tokens = sum(len(sample.ids) - sample.start for sample in chosen) / accumulate
        batch = chosen[number * batch_size : (number + 1) * batch_size]
        by_task = adapter is not None and bool(adapter.task_keys)
        return -log_likelihoods(self.model, batch, self.pad, by_task).sum() / tokens

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Report nothing in addition to the scores."""
        return {}

    def extra_modules(self) -> None:
        """Nothing is saved with the adapter."""

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
