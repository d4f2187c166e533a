"""The two searches of a user: for a fine-tuning to one task, and for a learner of many tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalora.config import AdapterConfig
from metalora.executors.config import ExecutorConfig
from metalora.learner.backbone import Backbone, load_backbone
from metalora.learner.config import LearnerConfig
from metalora.learner.data import Preprocessor, TaskPool
from metalora.learner.finetuning_config import FineTuneConfig
from metalora.learner.sweeps.config import SweepConfig
from metalora.learner.sweeps.jobs import FineTuneJob, FitJob, Job
from metalora.learner.sweeps.result import SweepResult
from metalora.learner.sweeps.run import OnTrial, run_sweep


def sweep_finetune(
    folder: str | Path,
    backbone: str | nn.Module | Backbone,
    inputs: Sequence[Any],
    labels: Sequence[Any],
    sweep: SweepConfig | None = None,
    *,
    adapter: AdapterConfig | None = None,
    config: FineTuneConfig | None = None,
    groups: Sequence[Any] | None = None,
    preprocessor: Preprocessor | None = None,
    device: str | torch.device | None = None,
    executor: ExecutorConfig | None = None,
    on_trial: OnTrial | None = None,
    facts: Mapping[str, object] | None = None,
) -> SweepResult | None:
    """Search the method, rank, learning rate and targets with which a network is fine-tuned best to one task.

    A part of the inputs is kept for a test. On the others each trial does what `finetune` does, and the trial with the
    best validation wins. The first trial has the settings without a search. The folder has everything: the trials
    (`trials.csv`, `report.html`), the settings (`best.yaml`) and the model (`best/`) of the best one, and the journal
    with which the same call goes on after it was stopped. Several processes may call it with one folder.

    Args:
        folder: The folder of the search.
        backbone: A name or a network; see `load_backbone`. It is not changed.
        inputs: Paths of pictures, pictures, texts or arrays.
        labels: A class for each of them.
        sweep: The budget and the choices; None: the defaults.
        adapter: The adapter without a search; None: LoRA of rank 8 on all layers.
        config: The settings of each training; None: the defaults.
        groups: Group of each input: inputs of one thing are not both trained on and kept.
        preprocessor: The preparation of the inputs, for a network that does not tell it.
        device: Where the network runs; None: a GPU if there is one.
        executor: What does the trials, several at a time: processes of this machine, Ray or Slurm; None: this process.
        on_trial: Called after every trial with its row and the number of trials in the folder.
        facts: What else the page says, such as versions.

    Returns:
        The result; None if trials still run in other processes, of which the last one to end writes it. A search of
        which every trial has failed has no `best`, and its `verdict` has the reason.

    Raises:
        ValueError: Inputs, labels or choices do not fit, or the folder is of another search or has other files.
        WorkFailed: The processes of the executor cannot do trials. The result of the other trials is written.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> settings = FineTuneConfig(steps=4, validate_every=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     sweep = SweepConfig(trials=2, methods=("lora",), ranks=(2, 4))
        ...     found = sweep_finetune(f"{folder}/search", network, x, x[:, 0] > 0, sweep, config=settings)
        ...     sorted(path.name for path in Path(folder, "search").iterdir() if path.suffix in (".yaml", ".csv"))
        ['best.yaml', 'trials.csv']
        >>> len(found.trials), len(found.best_scores)
        (2, 12)
    """
    sweep, adapter, config = sweep or SweepConfig(), adapter or AdapterConfig(), config or FineTuneConfig()
    settings = {"adapter": adapter, "test_items": sweep.test_items, "device": device}
    data = {"inputs": inputs, "labels": labels, "groups": groups}
    make_job = partial(_make_job, FineTuneJob, backbone, preprocessor, config, **data, **settings)
    return run_sweep(folder, make_job, sweep, executor, on_trial, facts)


def sweep_fit(
    folder: str | Path,
    backbone: str | nn.Module | Backbone,
    pools: Sequence[TaskPool],
    sweep: SweepConfig | None = None,
    *,
    config: LearnerConfig | None = None,
    holdout: int | Sequence[str] | None = None,
    preprocessor: Preprocessor | None = None,
    device: str | torch.device | None = None,
    executor: ExecutorConfig | None = None,
    on_trial: OnTrial | None = None,
    facts: Mapping[str, object] | None = None,
) -> SweepResult | None:
    """Search the method, rank, learning rate and targets with which a learner of many tasks is trained best.

    Inputs, and tasks if there are at least five, are kept for a test. On the others each trial does what `MetaLearner`
    does, and the trial with the best validation wins. The rest is as in `sweep_finetune`.

    Args:
        folder: The folder of the search.
        backbone: A name or a network; see `load_backbone`. It is not changed.
        pools: The tasks, of `read_tasks`.
        sweep: The budget and the choices; None: the defaults.
        config: The settings without a search; None: the defaults.
        holdout: How many tasks, or which, no trial sees; None: a fifth if there are at least five.
        preprocessor: The preparation of the inputs, for a network that does not tell it.
        device: Where the network runs; None: a GPU if there is one.
        executor: What does the trials, several at a time: processes of this machine, Ray or Slurm; None: this process.
        on_trial: Called after every trial with its row and the number of trials in the folder.
        facts: What else the page says, such as versions.

    Returns:
        The result; None if trials still run in other processes.

    Raises:
        ValueError: Tasks, settings or choices do not fit, or the folder is of another search or has other files.
        WorkFailed: The processes of the executor cannot do trials. The result of the other trials is written.
    """
    sweep, config = sweep or SweepConfig(), config or LearnerConfig()
    settings = {"holdout": holdout, "test_items": sweep.test_items, "device": device}
    make_job = partial(_make_job, FitJob, backbone, preprocessor, config, pools=pools, **settings)
    return run_sweep(folder, make_job, sweep, executor, on_trial, facts)


def _make_job(
    kind: Callable[..., Job],
    backbone: str | nn.Module | Backbone,
    preprocessor: Preprocessor | None,
    config: FineTuneConfig | LearnerConfig,
    **settings: Any,
) -> Job:
    """Return what a trial trains; each process that does trials loads the backbone itself."""
    loaded = load_backbone(
        backbone, preprocessor=preprocessor, image_size=config.image_size, max_length=config.max_length
    )
    return kind(loaded, config=config, **settings)
