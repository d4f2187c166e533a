"""Requests and answers of the service, as JSON has them."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

LONGEST_TEXT = 20_000  # characters
LONGEST_LABEL = 200
LARGEST_WHOLE = 2**53  # up to here JSON's numbers are exact everywhere
NO_NUL = r"^[^\x00]*$"  # PostgreSQL cannot store the character NUL


def _decoded(value: Any) -> Any:
    """Return the bytes of a base64 string; the parts of a form are bytes already."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


Picture = Annotated[
    bytes, BeforeValidator(_decoded), WithJsonSchema({"type": "string", "contentEncoding": "base64", "format": "byte"})
]
Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_LABEL, pattern=NO_NUL)]
Whole = Annotated[int, Field(ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)]
Scalar = Name | bool | Whole | float
Label = Scalar | list[Scalar]
Kind = Literal["auto", "classes", "numbers", "multilabel"]


class Request(BaseModel):
    """What all requests have in common: no unknown field, no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Inputs(Request):
    """Pictures or texts; the service takes one of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    images: list[Picture] = Field(default=[], min_length=1, description="JPEG, PNG, WebP, GIF or BMP files in base64")
    texts: list[Text] = Field(default=[], min_length=1)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected either images or texts")
        return self


class LabelledRequest(Request):
    """Labelled inputs."""

    inputs: Inputs
    labels: list[Label] = Field(min_length=1, description="a label for each input; for several labels, a list")
    groups: list[Name | Whole] | None = Field(None, description="inputs of one group are variants of one thing")

    @model_validator(mode="after")
    def _one_kind_of_labels(self) -> Self:
        if len({isinstance(label, list) for label in self.labels}) > 1:
            raise ValueError("labels: either all are lists, or none")
        return self


class TaskRequest(LabelledRequest):
    """What a task is made from."""

    kind: Kind = "auto"
    name: Name | None = None
    keep_examples: bool = Field(False, description="store the inputs, so that examples can be added later")


class InputsRequest(Request):
    """Inputs of a task that exists."""

    inputs: Inputs


class PreviewRequest(LabelledRequest):
    """Labelled inputs and queries for a task that is not stored."""

    queries: Inputs
    neighbours: int = Field(3, ge=0, le=100)
    kind: Kind = "auto"


class TaskReply(BaseModel):
    """A task."""

    task: str
    version: int
    adapter: str = Field(description="fingerprint of the learner that made it")
    kind: Literal["classes", "numbers", "multilabel"]
    classes: list[Label]
    examples: int
    bytes: int = Field(description="size of the stored task")
    accuracy: float | None = Field(description="leave-one-out accuracy on the examples; null for numbers")
    name: str | None
    keep_examples: bool
    created: str


class TasksReply(BaseModel):
    """A page of tasks."""

    tasks: list[TaskReply]
    next: str | None = Field(description="give it as `after` to get the next page")


class Predictions(BaseModel):
    """Predictions of inputs."""

    labels: list[Label]
    probabilities: list[list[float]] | None = Field(description="a column for each class; null for numbers")
    abstention: list[float] = Field(description="how unlike the examples each input is, from 0 to 1")


class PredictReply(Predictions):
    """Predictions of a task."""

    task: str
    version: int
    classes: list[Label]


class EmbedReply(BaseModel):
    """Embeddings of inputs, in which what tells of the task counts most."""

    task: str
    version: int
    embeddings: list[list[float]]


class Judged(Predictions):
    """Predictions with the leave-one-out accuracy on the examples."""

    accuracy: float | None


class Neighbour(BaseModel):
    """An example that is close to a query."""

    example: int
    distance: float


class PreviewReply(BaseModel):
    """What a task would say, with the adapter and with the frozen network."""

    classes: list[Label]
    adapted: Judged
    frozen: Judged
    neighbours: list[list[Neighbour]]


class ServiceReply(BaseModel):
    """What is served."""

    inputs: Literal["images", "texts"]
    backbone: str
    adapter: str
    method: str | None
    limits: dict[str, int | float]
    version: str


class StatusReply(BaseModel):
    """Whether the service lives, or takes requests."""

    status: str


class ErrorDetail(BaseModel):
    """What is wrong."""

    code: str
    message: str
    field: str | None


class ErrorReply(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail
