"""The model card of a learner: a README with the metadata that the Hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

CARD = """---
library_name: metalora
tags:
- metalora
- meta-learning
- adapter
---

# A learner of metalora

{sentence}

```python
from metalora.learner import MetaLearner

learner = MetaLearner.from_pretrained("FOLDER_OR_REPOSITORY")
task = learner.adapt(inputs, labels)  # some sixty labelled examples, one forward pass
task.predict(further_inputs)
```

| | |
|---|---|
| backbone | {backbone} |
| adapter | {adapter} |
| readout | {readout} |
| inputs | {modality} |
| trained with | {steps} steps, seed {seed} |

## Evaluation

{evaluation}
"""


def model_card(learner: MetaLearner) -> str:
    """Return the text of the model card of a learner.

    Args:
        learner: The learner.
    """
    adapter = learner.adapter
    backbone = learner.backbone.name or type(learner.backbone.model).__name__
    description = "none" if adapter is None else f"{adapter.method.name}, {adapter.num_params():,} parameters"
    return CARD.format(
        sentence=f"It adapts the frozen network {backbone} to a new task from labelled examples, without training.",
        backbone=backbone,
        adapter=description,
        readout=learner.config.readout,
        modality=learner.backbone.preprocessor.kind,
        steps=learner.config.steps if adapter is not None else 0,
        seed=learner.config.seed,
        evaluation=_evaluation(learner),
    )


def _evaluation(learner: MetaLearner) -> str:
    if not hasattr(learner, "report_"):
        return "Not evaluated."
    report = learner.report_
    if not report.scores:
        return report.verdict
    header = ["| method | trained tasks | held-out tasks |", "|---|---|---|"]
    rows = [f"| {row['method']} | {_cell(row['trained'])} | {_cell(row['held out'])} |" for row in report.table()]
    note = (
        f"Accuracy in per cent on inputs that were not trained on, from {report.support} labelled examples of a task. "
        f"Expected calibration error {report.calibration_error:.3f}."
    )
    return "\n".join([report.verdict, "", *header, *rows, "", note])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
