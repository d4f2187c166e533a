"""What the service answers, as values of Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import httpx
import numpy as np

from metalora.client.errors import unexpected_reply

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TaskState:
    """What the service says of a task.

    Attributes:
        id: Its id.
        version: 1, and one more with every change.
        kind: "classes", "numbers" or "multilabel".
        classes: The classes, in the order of the columns of `predict_proba`.
        examples: How many labelled inputs it was made of.
        bytes: Size of the stored task.
        accuracy: Leave-one-out accuracy on its labelled inputs, or None.
        name: Its name, or None.
        keep_examples: Whether the service keeps the labelled inputs, so that further ones can be added.
        adapter: Fingerprint of the learner that made it.
        created: When it was created, ISO 8601.
    """

    id: str
    version: int
    kind: str
    classes: list[Any]
    examples: int
    bytes: int
    accuracy: float | None
    name: str | None
    keep_examples: bool
    adapter: str
    created: str

    @property
    def classes_(self) -> Array:
        """The classes as an array, as `AdaptedTask.classes_`."""
        return label_array(self.classes)


@dataclass(frozen=True)
class Prediction:
    """What a task says of m inputs.

    Attributes:
        version: The version of the task.
        labels: As `AdaptedTask.predict` gives them: an array (m,), numbers (m,) or (m, outputs), or a list of sets.
        probabilities: A probability for every class, (m, classes); None for numbers.
        novelty: How unlike the labelled inputs each input is, (m,), from 0 to 1.
        classes: The classes, in the order of the columns.
    """

    version: int
    labels: Any
    probabilities: Array | None
    novelty: Array
    classes: Array


def content_of(response: httpx.Response) -> Any:
    """Return the JSON of a reply; ServiceError if it is none."""
    try:
        return response.json()
    except ValueError:
        raise unexpected_reply(response) from None


def service_of(response: httpx.Response) -> dict[str, Any]:
    """Return what a reply says of the service; ServiceError if it says nothing."""
    described = content_of(response)
    if not isinstance(described, dict) or not {"inputs", "limits"} <= described.keys():
        raise unexpected_reply(response)
    return described


def state_of(response: httpx.Response) -> TaskState:
    """Return the task of a reply; ServiceError if it describes none."""
    return _state(content_of(response), response)


def page_of(response: httpx.Response) -> tuple[list[TaskState], str | None]:
    """Return the tasks of a page, and the id after which the next page begins, or None."""
    page = content_of(response)
    try:
        return [_state(described, response) for described in page["tasks"]], page["next"]
    except (KeyError, TypeError):
        raise unexpected_reply(response) from None


def _state(described: Any, response: httpx.Response) -> TaskState:
    names = [field.name for field in fields(TaskState) if field.name != "id"]
    try:
        return TaskState(id=described["task"], **{name: described[name] for name in names})
    except (KeyError, TypeError):
        raise unexpected_reply(response) from None


def prediction_of(responses: Sequence[httpx.Response], kind: str) -> Prediction:
    """Return the predictions of several replies of one version, put together.

    Args:
        responses: The replies to parts of the inputs, in their order.
        kind: What the labels are.
    """
    parts = [content_of(response) for response in responses]
    try:
        labels = [label for part in parts for label in part["labels"]]
        rows = [row for part in parts for row in part["probabilities"] or ()]
        novelty = [value for part in parts for value in part["abstention"]]
        version, classes = parts[0]["version"], label_array(parts[0]["classes"])
    except (KeyError, TypeError):
        raise unexpected_reply(responses[0]) from None
    probabilities = None if kind == "numbers" else np.array(rows)
    return Prediction(version, _decoded(labels, kind), probabilities, np.array(novelty), classes)


def _decoded(labels: list[Any], kind: str) -> Any:
    if kind == "multilabel":
        return [set(names) for names in labels]
    return np.asarray(labels, dtype=float) if kind == "numbers" else label_array(labels)


def embeddings_of(responses: Sequence[httpx.Response]) -> Array:
    """Return the embeddings of several replies, (m, d), put together."""
    parts = [content_of(response) for response in responses]
    try:
        return np.array([row for part in parts for row in part["embeddings"]])
    except (KeyError, TypeError):
        raise unexpected_reply(responses[0]) from None


def label_array(labels: Sequence[Any]) -> Array:
    """Return labels as an array of their own type.

    Example:
        >>> label_array(["cat", "dog"])
        array(['cat', 'dog'], dtype='<U3')
    """
    array = np.asarray(labels)
    return array if array.ndim == 1 else np.array(labels, dtype=object)
