"""Suite "continuation": a decoder goes on with a text in the style of its prompt."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora_papers.metalora.continuation_config import ContinuationRunConfig
from metalora_papers.metalora.decoder import pretrained_decoder
from metalora_papers.metalora.styles import STYLES, Style
from metalora_papers.metatt.causal import Sample, load_causal, log_likelihoods, padded
from metalora_papers.metatt.news import News
from metalora_papers.suite import device_of

CALIBRATION = 8  # batches that the features of a condition are standardised by


class ContinuationSuite:
    """Texts in many styles for a causal language model; a `metalora_papers.suite.Suite`.

    The loss is the cross-entropy of the characters after the prompt. A test prints it in nats per token, for the
    styles of training and for others; a style that is new joins parts that were seen, each in other company.

    Args:
        config: The configuration.

    Raises:
        ValueError: The model does not exist, or the articles are not there.
    """

    averaged_losses = 20
    example = None

    def __init__(self, config: ContinuationRunConfig):
        self.config = config
        parts = News(config.data_root).parts
        self.texts = {split: [" ".join(article.sentences) for article in articles] for split, articles in parts.items()}
        folder = config.model.removeprefix("hf:") or str(pretrained_decoder(config.decoder, self.texts["train"]))
        self.model, self.tokenizer = load_causal(f"hf:{folder}")
        pad = self.tokenizer.pad_token_id
        self.pad = self.tokenizer.eos_token_id if pad is None else pad

    @property
    def trained_model(self) -> nn.Module:
        """The model; nothing but the adapter is trained."""
        return self.model

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Calibrate a generated adapter before training."""
        if training and adapter is not None and adapter.conditional:
            adapter.calibrate(self._prompts(-1 - number) for number in range(CALIBRATION))

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the cross-entropy of a batch of continuations in nats per token, a scalar."""
        samples = self.samples("train", STYLES["seen"], self.config.batch, step)
        return -log_likelihoods(self.model, samples, self.pad, adapter).mean() / self.config.response

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Report nothing in addition to the scores."""
        return {}

    def extra_modules(self) -> None:
        """Nothing is saved with the adapter."""

    def samples(self, split: str, styles: Sequence[Style], n: int, number: int) -> list[Sample]:
        """Draw n texts, each in a style that is drawn too; the same ones for equal arguments.

        Args:
            split: Which articles.
            styles: The styles.
            n: Number of texts.
            number: Number of the draw.
        """
        rng = random.Random(f"{split}/{self.config.seed}/{number}")
        return [self._sample(split, rng.choice(styles), rng) for _ in range(n)]

    def _sample(self, split: str, style: Style, rng: random.Random) -> Sample:
        length = self.config.prompt + self.config.response
        while True:
            words = rng.choice(self.texts[split]).split(" ")
            start = rng.randrange(len(words))
            text = " ".join(words[start : start + length])  # a word has a token at least
            ids = self.tokenizer(style.write(text))["input_ids"]
            if len(ids) >= length:
                return Sample(tuple(ids[:length]), self.config.prompt)

    def _prompts(self, number: int) -> dict[str, Tensor]:
        samples = self.samples("train", STYLES["seen"], self.config.batch, number)
        return self._prompt_inputs(samples)

    def _prompt_inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        prompts = [Sample(sample.ids[: sample.start], sample.start) for sample in samples]
        inputs, _ = padded(prompts, self.pad, device_of(self.model))
        return inputs

    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the nats per token of each group of styles, and of a generated adapter with another text's prompt."""
        results: dict[str, Any] = {"nats": {}, "nats_of_style": {}}
        for group, styles in STYLES.items():
            by_style = {"/".join(vars(style).values()): self._nats(style, adapter) for style in styles}
            results["nats"][group] = fmean(by_style.values())
            results["nats_of_style"][group] = by_style
        if adapter is not None and adapter.conditional:
            results["nats_with_another_prompt"] = self._nats_with_another_prompt(adapter)
        return results

    def _nats(self, style: Style, adapter: Adapter | None) -> float:
        total = 0.0
        for samples in self._test_batches([style]):
            total += -float(log_likelihoods(self.model, samples, self.pad, adapter).sum())
        return total / self.config.test_examples / self.config.response

    def _nats_with_another_prompt(self, adapter: Adapter) -> float:
        """Return the nats per token of seen styles if each text gets the condition of the text before it."""
        total = count = 0.0
        for samples in self._test_batches(STYLES["seen"]):
            condition = adapter.condition(self._prompt_inputs(samples))
            with adapter.using(condition[torch.arange(len(samples)).roll(1)]):
                total += -float(log_likelihoods(self.model, samples, self.pad, adapter).sum())
            count += len(samples)
        return total / count / self.config.response

    def _test_batches(self, styles: Sequence[Style]) -> Iterator[list[Sample]]:
        samples = self.samples(self.config.split, styles, self.config.test_examples, 0)
        for first in range(0, len(samples), self.config.batch):
            yield samples[first : first + self.config.batch]
