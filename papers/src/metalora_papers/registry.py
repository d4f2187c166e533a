"""Which configuration a run's file holds: its suite says it. Imports no torch."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora._util.suggest import nearest
from metalora.config import from_dict, read_yaml
from metalora_papers.config import CausalRunConfig, RunConfig, TextRunConfig

if TYPE_CHECKING:
    from torch import nn

Run = RunConfig | TextRunConfig | CausalRunConfig
SUITES: dict[str, type[Run]] = {
    suite: kind
    for kind in typing.get_args(Run)
    for suite in typing.get_args(typing.get_type_hints(kind)["suite"])
}  # fmt: skip


def load_run(path: str | Path) -> Run:
    """The run of a YAML file, by its suite (attributes if it names none); ValueError for an unknown one."""
    values = read_yaml(path)
    suite = values.get("suite", "attributes") if isinstance(values, dict) else "attributes"
    if not isinstance(suite, str) or suite not in SUITES:
        raise ValueError(f"{path}.suite: unknown choice {suite!r}{nearest(str(suite), SUITES)}")
    return from_dict(SUITES[suite], values, str(path))


def prepare_run(run: Run) -> tuple[Any, nn.Module]:
    """The experiment of a run, whose `evaluate(adapter)` scores, and the model that its adapter is attached to."""
    if isinstance(run, TextRunConfig):
        from metalora_papers.metatt.text import TextExperiment

        experiment = TextExperiment(run)
        return experiment, experiment.model.encoder
    if isinstance(run, CausalRunConfig):
        from metalora_papers.metatt.causal import CausalExperiment

        experiment = CausalExperiment(run)
        return experiment, experiment.model
    from metalora_papers.metalora.vision import prepare

    prepared = prepare(run)
    return prepared.experiment, prepared.model


def load_base(path: str) -> tuple[nn.Module, Any]:
    """The frozen base of a run's file and its tokenizer, if any: `--model run:RUN.yaml` of the command `metalora`."""
    experiment, model = prepare_run(load_run(path))
    return model, getattr(experiment, "tokenizer", None)


def score(run: Run, adapter: Path | None) -> dict[str, Any]:
    """The scores of a saved adapter, with the heads in its file, or of the frozen model, on the data of a run.

    ValueError for a text run that trains heads or the encoder without an adapter: no file holds them.
    """
    from metalora.io.adapter_file import load, read

    heads = isinstance(run, TextRunConfig) and run.classifier == "trained"
    if heads and adapter is None or getattr(run, "full", False):
        raise ValueError(
            "eval: this run trains weights without an adapter (classifier: trained, or full: true) and no file holds "
            "them; its scores are in the row that `train` wrote"
        )
    if adapter is not None:
        read(adapter)  # a file that is not there must not be missed after a backbone was pre-trained
    experiment, model = prepare_run(run)
    if adapter is None:
        return experiment.evaluate(None)
    loaded = load(model, adapter, extra_module=experiment.model.heads if heads else None)
    if isinstance(run, TextRunConfig):
        experiment.prepare(loaded)
    return experiment.evaluate(loaded)
