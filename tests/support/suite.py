"""The settings of both suites, the library's and that of the papers: seeds, one thread, hypothesis, garbage collection.

Nothing here imports torch before the tests are collected: the process that only spreads them over workers has no use
for it, and would let them wait for two seconds.
"""

import gc
import logging

from hypothesis import settings


def before_collection():
    """Make hypothesis draw the same examples in every run, and stop looking for cycles until all is collected."""
    settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True)
    settings.load_profile("suite")
    gc.disable()  # ten thousand tests are scanned over and over otherwise


def after_collection():
    """Compute in one thread, look for cycles less often, and keep pytest from handling each logger of torch."""
    import torch

    torch.set_num_threads(1)
    if not torch.accelerator.is_available():
        _seed_processor_alone(torch)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True  # pytest adds a handler to each logger that does not propagate, six times a test
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)  # with Python's 700 a tenth of all time goes into looking for cycles
    gc.enable()


def _seed_processor_alone(torch):
    """Without a card, `torch.manual_seed` notes the stack for each kind of card: a millisecond in a test."""
    for kind in (torch.cuda, torch.xpu, torch.mtia):
        kind.manual_seed_all = lambda seed: None


def forget_old_objects():
    """Let later collections pass over all that is alive now: modules above all.

    Libraries collect garbage on their own, transformers after each continuous batch; with a million objects of
    imported modules that takes a third of a second.
    """
    gc.collect()
    gc.freeze()


def seed_torch():
    """Let torch draw the same numbers, whatever ran before."""
    import torch

    torch.manual_seed(0)
