"""A task of the service, with the verbs of `AdaptedTask`: synchronous and asynchronous."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora._util.files import write_atomically
from metalora.client.replies import Array, Prediction, TaskState

if TYPE_CHECKING:
    from metalora.client.client import AsyncClient, Client

TASK_FILE = "task.safetensors"  # what `AdaptedTask.from_pretrained` reads


class RemoteTask(TaskState):
    """A task of the service. `client.create` and `client.task` give it.

    Its fields are those of `TaskState`, of the time when it was read. A call predicts with the newest version.
    """

    _client: Client

    def predict(self, inputs: Sequence[Any]) -> Any:
        """Return the class of each input, (m,); numbers for a regression; a list of sets for a multi-label task.

        Args:
            inputs: Paths, bytes of files, pictures of PIL, arrays (height, width, 3) of uint8; or texts. Any number:
                they are sent in parts that the service takes.

        Raises:
            ServiceError: The service answers with an error, or cannot be reached.
            ValueError: An input is not what the service takes.
        """
        return self.predictions(inputs).labels

    def predict_proba(self, inputs: Sequence[Any]) -> Array:
        """Return a probability for every class, (m, classes).

        Raises:
            ValueError: The labels of the task are numbers.
        """
        return probabilities_of(self.predictions(inputs))

    def novelty(self, inputs: Sequence[Any]) -> Array:
        """Return how unlike the labelled inputs each input is, (m,), from 0 to 1: abstain if it is close to 1."""
        return self.predictions(inputs).novelty

    def predictions(self, inputs: Sequence[Any]) -> Prediction:
        """Return labels, probabilities and novelty at once."""
        return self._client.run(self._client.operations.predict(self, inputs))

    def embed(self, inputs: Sequence[Any]) -> Array:
        """Return embeddings, (m, d): near inputs are alike for this task."""
        return self._client.run(self._client.operations.embed(self, inputs))

    def add(self, inputs: Sequence[Any], labels: Any, *, groups: Any = None) -> RemoteTask:
        """Return the task after further labelled inputs; its version is higher.

        A failed attempt is repeated with the same idempotency key, so that the inputs are added once.

        Args:
            inputs: Further inputs.
            labels: Their labels.
            groups: Their groups, if the task was made with groups.

        Raises:
            Conflict: The service does not keep the examples of this task.
        """
        return remote_task(self._client, self._client.run(self._client.operations.add(self.id, inputs, labels, groups)))

    def delete(self) -> None:
        """Delete the task with all that the service stores of it."""
        self._client.delete(self.id)

    def download(self, folder: str | Path) -> Path:
        """Write the task as a folder that `AdaptedTask.from_pretrained` reads, and return it.

        Args:
            folder: The folder; it is made if it does not exist.
        """
        return write_task(folder, self._client.run(self._client.operations.file(self.id)))


class AsyncRemoteTask(TaskState):
    """A task of the service as `RemoteTask`; the verbs are awaited. `AsyncClient` gives it."""

    _client: AsyncClient

    async def predict(self, inputs: Sequence[Any]) -> Any:
        """As `RemoteTask.predict`."""
        return (await self.predictions(inputs)).labels

    async def predict_proba(self, inputs: Sequence[Any]) -> Array:
        """As `RemoteTask.predict_proba`."""
        return probabilities_of(await self.predictions(inputs))

    async def novelty(self, inputs: Sequence[Any]) -> Array:
        """As `RemoteTask.novelty`."""
        return (await self.predictions(inputs)).novelty

    async def predictions(self, inputs: Sequence[Any]) -> Prediction:
        """As `RemoteTask.predictions`."""
        return await self._client.run(self._client.operations.predict(self, inputs))

    async def embed(self, inputs: Sequence[Any]) -> Array:
        """As `RemoteTask.embed`."""
        return await self._client.run(self._client.operations.embed(self, inputs))

    async def add(self, inputs: Sequence[Any], labels: Any, *, groups: Any = None) -> AsyncRemoteTask:
        """As `RemoteTask.add`."""
        state = await self._client.run(self._client.operations.add(self.id, inputs, labels, groups))
        return async_remote_task(self._client, state)

    async def delete(self) -> None:
        """As `RemoteTask.delete`."""
        await self._client.delete(self.id)

    async def download(self, folder: str | Path) -> Path:
        """As `RemoteTask.download`."""
        return write_task(folder, await self._client.run(self._client.operations.file(self.id)))


def remote_task(client: Client, state: TaskState) -> RemoteTask:
    """Return a task that a client has read."""
    task = RemoteTask(**_values(state))
    object.__setattr__(task, "_client", client)  # no field: it is neither shown nor compared
    return task


def async_remote_task(client: AsyncClient, state: TaskState) -> AsyncRemoteTask:
    """Return a task that an asynchronous client has read."""
    task = AsyncRemoteTask(**_values(state))
    object.__setattr__(task, "_client", client)
    return task


def _values(state: TaskState) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in fields(state)}


def probabilities_of(prediction: Prediction) -> Array:
    """Return the probabilities of a prediction; ValueError if it has none."""
    if prediction.probabilities is None:
        raise ValueError("predict_proba: the labels of this task are numbers; use predict")
    return prediction.probabilities


def write_task(folder: str | Path, content: bytes) -> Path:
    """Write the file of a task into a folder, and return the folder."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / TASK_FILE, content)
    return path
