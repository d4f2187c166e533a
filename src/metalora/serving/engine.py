"""Runs a learner in two threads: one predicts for many tenants at once, one adapts and lets the first go ahead."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition_table import ConditionTable
from metalora.learner.features import to_device
from metalora.learner.learner import MetaLearner
from metalora.learner.many_tasks import TaskOutputs, outputs_of_many
from metalora.learner.task import AdaptedTask
from metalora.serving.batcher import FairQueue, Slice, Turns, Waiting
from metalora.serving.config import ServingConfig
from metalora.serving.errors import ServiceError
from metalora.serving.lane_learner import lane_learner
from metalora.serving.metrics import Metrics

Result = TypeVar("Result")
LONGEST_TURN = 0.05  # seconds that a piece of a support set waits for predictions


class Job(Waiting):
    """Work for a lane, and the future that gets its outcome in the event loop that asked for it.

    Args:
        tenant: Whose it is.
        rows: Number of its inputs.
    """

    def __init__(self, tenant: int, rows: int):
        super().__init__(tenant, rows)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()

    def settle(self, outcome: Any) -> None:
        """Give the outcome, or raise it, to whoever still waits; called in the event loop."""
        if self.future.done():
            return
        if isinstance(outcome, BaseException):
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)


class Prediction(Job):
    """Inputs of a task, of which the outputs come together, maybe from several batches."""

    def __init__(self, tenant: int, task: AdaptedTask, encoded: Sequence[Tensor]):
        super().__init__(tenant, len(encoded))
        self.task, self.encoded = task, encoded
        self.outputs: list[TaskOutputs] = []


class Adaptation(Job):
    """A function of the learner for the lane that adapts."""

    def __init__(self, tenant: int, rows: int, function: Callable[[MetaLearner], Any]):
        super().__init__(tenant, rows)
        self.function = function


class Engine:
    """A learner with its two lanes.

    Args:
        learner: The learner; nothing else may train it.
        config: The settings.
        metrics: What is counted.

    Attributes:
        learner: As given.
        fingerprint: Its fingerprint, computed once.
        conditions: The conditions of the tasks that are in memory.
        predictions: Inputs that wait for a prediction.
        adaptations: Support sets that wait.
    """

    def __init__(self, learner: MetaLearner, config: ServingConfig, metrics: Metrics):
        self.learner, self.config, self.metrics = learner, config, metrics
        self.fingerprint = learner.fingerprint
        self.conditions = ConditionTable()
        self.predictions = FairQueue(config.max_queue_rows)
        self.adaptations = FairQueue(config.max_queue_rows)
        self._turns = Turns(LONGEST_TURN)
        self._lane_learner = lane_learner(learner, self._turns.wait)
        self._threads = [
            threading.Thread(target=lane, name=f"metalora {lane.__name__.strip('_')}", daemon=True)
            for lane in (self._predict, self._adapt)
        ]
        for thread in self._threads:
            thread.start()

    def task_of(self, content: bytes) -> AdaptedTask:
        """Return the task of a file, ready to predict; its condition is a row of the table of all tasks in memory."""
        return AdaptedTask.from_bytes(content, self.learner, fingerprint=self.fingerprint, conditions=self.conditions)

    @property
    def is_alive(self) -> bool:
        """Whether both lanes run."""
        return all(thread.is_alive() for thread in self._threads)

    async def outputs(self, tenant: int, task: AdaptedTask, encoded: Sequence[Tensor]) -> TaskOutputs:
        """Return the outputs of a task for prepared inputs, on the CPU.

        Raises:
            ServiceError: Too many inputs wait, or the features of an input are not finite.
        """
        outputs: TaskOutputs = await self._outcome(self.predictions, Prediction(tenant, task, encoded))
        return outputs

    async def run(self, tenant: int, rows: int, function: Callable[[MetaLearner], Result]) -> Result:
        """Return what a function gives in the lane that adapts.

        Args:
            tenant: Whose work it is.
            rows: Number of its inputs.
            function: It gets the learner, which takes inputs that `Preprocessor.encode` has prepared.

        Raises:
            ServiceError: Too many inputs wait.
        """
        result: Result = await self._outcome(self.adaptations, Adaptation(tenant, rows, function))
        return result

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        for queue in (self.predictions, self.adaptations):
            queue.close()
        for thread in self._threads:
            thread.join()

    @staticmethod
    async def _outcome(queue: FairQueue, job: Job) -> Any:
        queue.put(job)
        try:
            return await job.future
        finally:
            queue.discard(job)  # if this coroutine was cancelled; otherwise nothing is left of it

    # ---- the lane that predicts ------------------------------------------------------------------------------------
    def _predict(self) -> None:
        while batch := self.predictions.take(self.config.max_rows, self.config.max_wait_ms / 1000):
            with self._turns.first():
                finished = self._computed(batch)
            _deliver(finished)

    def _computed(self, batch: list[Slice]) -> list[tuple[Job, Any]]:
        """Compute a batch; return the requests that are finished, with their outcomes."""
        start = time.monotonic()
        outputs = self._outputs_or_errors(batch)
        rows, seconds = sum(part.stop - part.start for part in batch), time.monotonic() - start
        self.predictions.measured(rows, seconds)
        self.metrics.batch(rows, seconds)
        finished: list[tuple[Job, Any]] = []
        for part, output in zip(batch, outputs, strict=True):
            request = part.request
            assert isinstance(request, Prediction)
            if isinstance(output, Exception):
                finished.append((request, output))
                continue
            request.outputs.append(output)
            if part.stop == request.rows:
                finished.append((request, _joined(request.outputs)))
        return finished

    def _outputs_or_errors(self, batch: list[Slice]) -> list[TaskOutputs | Exception]:
        """Return an output for each part; if the batch fails, each part is computed alone, so that one fails alone."""
        try:
            return [*self._forward(batch)]
        except Exception as error:
            if len(batch) > 1:
                return [output for part in batch for output in self._outputs_or_errors([part])]
            is_of_input = isinstance(error, ValueError)
            return [ServiceError("invalid_input", str(error), "inputs") if is_of_input else error]

    @torch.no_grad()
    def _forward(self, batch: list[Slice]) -> list[TaskOutputs]:
        encoded: list[Tensor] = []
        tasks: list[AdaptedTask] = []
        for part in batch:
            assert isinstance(part.request, Prediction)
            encoded += part.request.encoded[part.start : part.stop]
            tasks.append(part.request.task)
        inputs = to_device(self.learner.backbone.preprocessor.collate(encoded), self.learner.device)
        with precision(self.learner.device, self.config.dtype):
            return on_cpu(outputs_of_many(self.learner, inputs, tasks, [part.stop - part.start for part in batch]))

    # ---- the lane that adapts --------------------------------------------------------------------------------------
    def _adapt(self) -> None:
        while (job := self.adaptations.take_request()) is not None:
            assert isinstance(job, Adaptation)
            start = time.monotonic()
            outcome = self._result(job)
            seconds = time.monotonic() - start
            self.adaptations.measured(job.rows, seconds)
            self.metrics.adapt_seconds.observe(seconds)
            _deliver([(job, outcome)])

    def _result(self, job: Adaptation) -> Any:
        if job.future.cancelled():
            return None
        try:
            with precision(self.learner.device, self.config.dtype):
                return job.function(self._lane_learner)
        except Exception as error:
            return error


def _deliver(finished: list[tuple[Job, Any]]) -> None:
    """Give outcomes to the event loops that wait for them, with one call for each loop."""
    for loop in {job.loop for job, _ in finished}:
        of_loop = [(job, outcome) for job, outcome in finished if job.loop is loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_settle, of_loop)


def _settle(finished: list[tuple[Job, Any]]) -> None:
    for job, outcome in finished:
        job.settle(outcome)


def _joined(outputs: list[TaskOutputs]) -> TaskOutputs:
    return outputs[0] if len(outputs) == 1 else TaskOutputs(*map(torch.cat, zip(*outputs, strict=True)))


def on_cpu(outputs: Sequence[TaskOutputs]) -> list[TaskOutputs]:
    """Return outputs on the CPU in float32; from a card they are copied all at once."""
    tensors = [tensor.float() for output in outputs for tensor in output]
    if tensors[0].device.type != "cpu":
        flat = torch.cat([tensor.flatten() for tensor in tensors]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        tensors = [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
    size = len(TaskOutputs._fields)
    return [TaskOutputs(*tensors[start : start + size]) for start in range(0, len(tensors), size)]


def precision(device: torch.device, dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the network computes in a precision; readouts stay in float32.

    Args:
        device: Where the network is.
        dtype: "float32", "float16" or "bfloat16".
    """
    if dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))
