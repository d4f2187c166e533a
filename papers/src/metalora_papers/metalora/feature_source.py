"""What the generated adapters of a table on images are made from."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from metalora.adapters.conditioning.stages import stages
from metalora.config import ConditionConfig
from metalora_papers.config import TableConfig

UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and deviation: the small backbones take values from 0 to 1


def check_source(table: TableConfig) -> None:
    """Raise a ValueError for a source that the table cannot have, and for a setting of it that has no effect."""
    if table.source == "readout":
        raise ValueError(
            "source 'readout': this table judges by k-NN; `metalora-papers table learner-attributes` judges static and "
            "generated adapters by the readout of a support set"
        )
    if table.source == "extractor" and not table.extractor:
        raise ValueError("source 'extractor' needs the name of a network in extractor, such as timm:resnet18")
    for name in ("extractor", "extractor_size"):
        value = getattr(table, name)
        if value and table.source != "extractor":
            raise ValueError(f"{name} {value!r} is for source 'extractor', and the source is {table.source!r}")
    if table.source == "stem" and table.suite == "attributes":
        raise ValueError(
            "source 'stem' is read in the forward pass of an image, and the adapters of suite 'attributes' are made "
            "from a support set before it; use suite cue, shift or natural"
        )


def generated_condition(table: TableConfig, backbone: nn.Module) -> ConditionConfig:
    """Return the condition of the generated methods: a labelled support set for attributes, otherwise the input.

    Args:
        table: The settings.
        backbone: The network that is adapted, whose first stage is the stem.
    """
    # A pre-trained backbone states how its images are normalised, the small ones do not.
    is_unstated = table.source == "extractor" and not table.model
    image_mean, image_std = UNCHANGED if is_unstated else (None, None)
    return ConditionConfig(
        source=_source(table),
        scope="support" if table.suite == "attributes" else "sample",
        hidden=table.hidden,
        heads=table.heads,
        descriptor_dropout=table.descriptor_dropout,
        extractor=table.extractor or None,
        image_mean=image_mean,
        image_std=image_std,
        image_size=table.extractor_size,
        stem=stages(backbone)[0] if table.source == "stem" else None,
    )


def static_condition(table: TableConfig) -> ConditionConfig:
    """Return the condition of the static methods: none.

    It names the source all the same. The generated adapters of a source set the size of the static ones, so that a
    static row belongs to a source too.
    """
    return ConditionConfig(
        source=_source(table),
        scope="constant",
        extractor=table.extractor or None,
        image_size=table.extractor_size,
    )


def is_of_source(table: TableConfig, config: dict[str, Any]) -> bool:
    """Return whether the configuration of a row has the source of a table; a frozen backbone belongs to all."""
    if config["adapter"] is None:
        return True
    condition = config["adapter"]["condition"]
    size = condition.get("image_size")  # rows of before that field have none
    found = (condition["source"], condition["extractor"], size)
    return found == (table.source, table.extractor or None, table.extractor_size)


def source_label(table: TableConfig) -> str:
    """Return the source for titles and names of files; empty for the usual one."""
    if table.source != "extractor":
        return "" if table.source == "stages" else table.source
    size = f" at {table.extractor_size} pixels" if table.extractor_size else ""
    return f"extractor {table.extractor}{size}"


def _source(table: TableConfig) -> Literal["stages", "pooled", "extractor", "stem"]:
    assert table.source != "readout", "`check_source` refuses it"
    return table.source
