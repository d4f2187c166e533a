"""Causal language models: an adapter fitted on answers, judged by which choice the model finds most likely."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.processes import default_device
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.prompt import IGNORED
from metalora.methods.registry import get_method
from metalora.zoo import architectures
from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.commonsense import Commonsense, Question
from metalora_papers.runs import check_full
from metalora_papers.suite import device_of

TRAIN_SEED, TEST_SEED = 0, 9_000_000
CALIBRATION = 128  # training questions that the features of a condition are standardised by


@dataclass(frozen=True)
class Sample:
    """A prompt with its response, as tokens.

    Attributes:
        ids: Token ids of both.
        start: Index of the first token of the response.
        task: Number of the task; None if it is not known.
    """

    ids: tuple[int, ...]
    start: int
    task: int | None = None


def load_causal(name: str, dtype: str = "float32") -> tuple[nn.Module, Any]:
    """Load a frozen causal language model and its tokenizer.

    Texts are padded on the right, with the end-of-text token if a tokenizer has no pad token (as Llama's): neither
    attention nor loss sees the padding.

    Args:
        name: hf:FOLDER_OR_ID, or the name of an architecture of the zoo.
        dtype: Type of the weights.

    Returns:
        The model, on a GPU if there is one, and the tokenizer.

    Raises:
        ValueError: The model does not exist, or its tokenizer has neither a pad nor an end-of-text token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named_models = architectures()
    if name not in named_models and not name.startswith("hf:"):
        suggestion = nearest(name, ["hf:", *named_models])
        raise ValueError(f"model {name!r}: expected hf:FOLDER_OR_ID or a known name{suggestion}")
    folder = named_models[name]["hub"] if name in named_models else name.removeprefix("hf:")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {name!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ValueError(f"model {name!r}: its tokenizer has neither a pad token nor an end-of-text token")
    return model.to(default_device(), getattr(torch, dtype)).requires_grad_(False).eval(), tokenizer


def samples(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, *, end: bool = False) -> list[Sample]:
    """Turn prompts with their responses into tokens.

    The response is everything after the longest beginning that the tokens of the text share with those of the prompt
    alone: a tokenizer may join the last word of a prompt with the first of a response.

    Args:
        tokenizer: A tokenizer of transformers.
        pairs: (prompt, response) for each text.
        max_length: Number of tokens; a longer text loses the beginning of its prompt (not a begin-of-text token), with
            a warning.
        end: Add the end-of-text token, for training.

    Returns:
        A sample for each pair, without a task.

    Raises:
        ValueError: A response that leaves no token for its prompt.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    texts = tokenizer([prompt + response for prompt, response in pairs])["input_ids"]
    samples_of_pairs, shortened = [], 0
    for prompt_ids, text_ids in zip(prompts, texts, strict=True):
        start = _shared_length(prompt_ids, text_ids)
        if end and tokenizer.eos_token_id is not None and text_ids[-1] != tokenizer.eos_token_id:
            text_ids = [*text_ids, tokenizer.eos_token_id]
        cut = max(0, len(text_ids) - max_length)
        if start - cut < 1:  # the first token of a response is predicted from the one before it
            raise ValueError(f"max_length {max_length}: a response of {len(text_ids) - start} tokens leaves no prompt")
        shortened += cut > 0
        has_bos = text_ids[0] == tokenizer.bos_token_id
        first = text_ids[0] if has_bos else text_ids[cut]
        samples_of_pairs.append(Sample((first, *text_ids[cut + 1 :]), start - cut))
    if shortened:
        warnings.warn(
            f"{shortened} of {len(pairs)} texts are longer than max_length {max_length}: their prompts were shortened",
            stacklevel=2,
        )
    return samples_of_pairs


def _shared_length(prompt_ids: Sequence[int], text_ids: Sequence[int]) -> int:
    """Return how many tokens at the beginning of a text are those of its prompt."""
    for index, (prompt_token, token) in enumerate(zip(prompt_ids, text_ids, strict=False)):
        if prompt_token != token:
            return index
    return len(prompt_ids)


def padded(batch: Sequence[Sample], pad: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Put samples into one batch, padded on the right.

    Args:
        batch: The samples.
        pad: Id of the padding token.
        device: Where the tensors go.

    Returns:
        The inputs "input_ids" and "attention_mask", and labels that ignore prompts and padding; all are int64
        (batch, token).
    """
    longest = max(len(sample.ids) for sample in batch)
    ids = torch.full((len(batch), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        mask[row, :n] = 1
        labels[row, sample.start : n] = ids[row, sample.start : n]
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labels.to(device)


def log_likelihoods(model: nn.Module, batch: Sequence[Sample], pad: int, adapter: Adapter | None = None) -> Tensor:
    """Return the sum of log p(token | tokens before it) over every response.

    Args:
        model: A causal language model.
        batch: The samples.
        pad: Id of the padding token.
        adapter: Its adapter, which may need the tasks and the prompts of the samples; None: the model is frozen.

    Returns:
        Log-likelihoods, float32 (batch,).
    """
    device = device_of(model)
    inputs, labels = padded(batch, pad, device)
    if adapter is not None and adapter.task_keys:
        inputs["task_ids"] = torch.tensor([sample.task for sample in batch], device=device)
    if adapter is not None and adapter.reads_prompt:  # no choice may make an adapter of its own
        inputs["prompt_mask"] = _prompt_mask(inputs, labels)
    # The logits at a position predict the token after it.
    logits = model(**inputs, use_cache=False).logits[:, :-1]  # (batch, token - 1, vocabulary)
    targets = labels[:, 1:]
    in_response = targets != IGNORED
    # Only the rows of responses are turned to float32: the table of a whole batch is the largest tensor of a run.
    losses = F.cross_entropy(logits[in_response].float(), targets[in_response], reduction="none")  # (response token,)
    rows = in_response.nonzero()[:, 0]
    return -torch.zeros(len(batch), device=losses.device).index_add(0, rows, losses)


def _prompt_mask(inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return inputs["attention_mask"] * (labels == IGNORED)


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
        self.history: list[dict[str, Any]] = []

    @property
    def trained_model(self) -> nn.Module:
        """The model; nothing but the adapter is trained, unless the run trains every weight."""
        return self.model

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Before training, read the training questions and calibrate the adapter on the prompts of some of them.

        Raises:
            ValueError: There are fewer questions than a step takes.
        """
        if not training or (adapter is None and not self.config.full):
            return
        if self.config.full:
            self.model.requires_grad_(True)
        self._training_samples = self.train_samples()
        if len(self._training_samples) < self.step_size:
            raise ValueError(
                f"commonsense: {len(self._training_samples)} training questions are less than a step of "
                f"{self.step_size}"
            )
        if adapter is not None and adapter.conditional:
            adapter.calibrate(self._calibration_batches())

    def _calibration_batches(self) -> Iterator[dict[str, Tensor]]:
        device = device_of(self.model)
        chosen = self._training_samples[:: max(1, len(self._training_samples) // CALIBRATION)]  # of all tasks
        for first in range(0, len(chosen), self.config.batch):
            inputs, labels = padded(chosen[first : first + self.config.batch], self.pad, device)
            yield {**inputs, "prompt_mask": _prompt_mask(inputs, labels)}

    @property
    def step_size(self) -> int:
        """Questions of one step of the optimiser."""
        return self.config.batch * self.config.train.accumulate

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the cross-entropy on the responses of batch `step`, a scalar.

        The mean over the batches of one step of the optimiser is the mean over all tokens of its responses.
        """
        batch_size, accumulate = self.config.batch, self.config.train.accumulate
        optimiser_step, batch_number = divmod(step, accumulate)
        rows = self.rows(optimiser_step, len(self._training_samples), self.step_size)
        chosen = [self._training_samples[row] for row in rows]
        # A long response counts as many times as it has tokens: batches are not weighted equally.
        tokens = sum(len(sample.ids) - sample.start for sample in chosen) / accumulate
        batch = chosen[batch_number * batch_size : (batch_number + 1) * batch_size]
        return -log_likelihoods(self.model, batch, self.pad, adapter).sum() / tokens

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Every `evaluate_every` steps, record the scores; an interrupted run has only those since it continued."""
        every = self.config.evaluate_every
        if not every or (step + 1) % every:
            return
        if adapter is None:
            self.history.append({"step": step + 1, "loss": loss, **self.evaluate(None)})
            return
        adapter.eval()
        scores = self.evaluate(adapter)
        adapter.train()
        self.history.append({"step": step + 1, "loss": loss, "rank": adapter.rank, **scores})

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the records of the training."""
        return {"history": self.history}

    def extra_modules(self) -> None:
        """Nothing is saved with the adapter."""

    def rows(self, step: int, n: int, of_step: int) -> list[int]:
        """Return the numbers of the questions of a step; every epoch has another order.

        Args:
            step: Number of the step of the optimiser.
            n: Number of questions.
            of_step: Questions of one step; the rest of an epoch that does not fill a step is left out.
        """
        epoch, step_of_epoch = divmod(step, n // of_step)
        generator = torch.Generator().manual_seed(self.config.seed * 10_007 + epoch * 101)
        order = torch.randperm(n, generator=generator)
        return order[step_of_epoch * of_step : (step_of_epoch + 1) * of_step].tolist()

    def train_samples(self) -> list[Sample]:
        """Return the training questions with their right responses, as tokens."""
        config = self.config
        training: list[Sample] = []
        for source in self.corpus.sources(config.tasks, "train"):
            questions = self.corpus.questions(source, "train", config.examples, TRAIN_SEED)
            pairs = [(question.prompt, question.choices[question.answer]) for question in questions]
            training += self._of_task(source, samples(self.tokenizer, pairs, config.max_length, end=True))
        return training

    def _of_task(self, task: str, without_task: Sequence[Sample]) -> list[Sample]:
        """Return the samples with the number of their task, None for the mixed file."""
        number = self.config.tasks.index(task) if task in self.config.tasks else None
        return [Sample(sample.ids, sample.start, number) for sample in without_task]

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the accuracy of every task and the mean: the answer is the choice of the largest log-likelihood."""
        config = self.config
        accuracy = {}
        for source in self.corpus.sources(config.tasks, config.split):
            questions = self.corpus.questions(source, config.split, config.test_examples, TEST_SEED)
            answers = self.answers(source, questions, adapter)
            right = sum(answer == question.answer for answer, question in zip(answers, questions, strict=True))
            accuracy[source] = right / len(questions)
        return {"accuracy": accuracy, "mean": fmean(accuracy.values())}

    @torch.no_grad()
    def answers(self, task: str, questions: Sequence[Question], adapter: Adapter | None) -> list[int]:
        """Return the number of the most likely choice of every question.

        Args:
            task: The task of the questions, or "mixed".
            questions: The questions.
            adapter: The attached adapter; None for the frozen model.

        Raises:
            ValueError: Log-likelihoods that are not finite.
        """
        pairs = [(question.prompt, choice) for question in questions for choice in question.choices]
        all_samples = self._of_task(task, samples(self.tokenizer, pairs, self.config.max_length))
        size = self.config.batch
        batches = [all_samples[first : first + size] for first in range(0, len(all_samples), size)]
        scores = torch.cat([log_likelihoods(self.model, batch, self.pad, adapter) for batch in batches])  # (choice,)
        if not torch.isfinite(scores).all():
            # argmax would answer NaN with the first choice, and the accuracy would look like that of chance.
            raise ValueError(f"{task}: log-likelihoods are not finite in {self.config.dtype}; try another dtype")
        scores_by_question = scores.split([len(question.choices) for question in questions])
        return [int(choice_scores.argmax()) for choice_scores in scores_by_question]


def check(config: CausalRunConfig) -> None:
    """Raise a ValueError for settings that cannot work, before anything is loaded."""
    check_full(config)
    if config.full and config.dtype != "float32":
        raise ValueError(f"full: true trains the weights themselves: dtype is {config.dtype}, expected float32")
    adapter = config.adapter
    if adapter is None or adapter.tasks == 1 or "task" not in get_method(adapter.method).network.modes:
        return
    if not config.by_task:
        raise ValueError(f"{adapter.method} needs the task of every question: by_task: true, with <task>/train.json")
    if adapter.tasks != len(config.tasks):
        raise ValueError(f"{adapter.method}: tasks is {adapter.tasks}, expected {len(config.tasks)}, those of the run")
