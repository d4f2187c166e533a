"""Tasks that are made while the service is killed again and again: no acknowledged one may be lost."""

import asyncio
import random
import time
from collections.abc import Iterator

from serving_load.connections import Connections, encoded_request
from serving_load.modes import ADAPTING_CLIENTS, Measurement, PredictRequests, Scene, answers
from serving_load.tenants import DISTINCT_TASKS, Owner

PAUSE = 0.1  # seconds until a request that failed is sent again
LONGEST_LIFE = 2.0  # seconds from a start to the next kill


def run_kills(scene: Scene, tasks: int, kills: int) -> Iterator[Measurement]:
    """Make tasks while the process is killed, and compare what it says before and after a last kill."""
    acknowledged, starts = asyncio.run(_create_while_killing(scene, tasks, kills))
    before = asyncio.run(_answers_one_by_one(scene, acknowledged))
    scene.service.kill()
    starts.append(scene.service.start())
    after = asyncio.run(_answers_one_by_one(scene, acknowledged))
    figures = {
        "acknowledged": len(acknowledged),
        "kills": kills + 1,
        "lost": sum(answer is None for answer in after),
        "changed_answers": sum(old != new for old, new in zip(before, after, strict=True)),
        "stored_twice": len(_listed(scene)) - len({owner.task for owner in acknowledged}) - DISTINCT_TASKS,
        "longest_start_seconds": round(max(starts), 2),
    }
    yield {"tasks": tasks}, figures


async def _create_while_killing(scene: Scene, tasks: int, kills: int) -> tuple[list[Owner], list[float]]:
    """Return the tasks that were acknowledged, and the seconds that each new start took."""
    acknowledged: list[Owner] = []
    starts: list[float] = []
    numbers = iter(range(2**62))
    finished = asyncio.Event()

    async def create(connections: Connections) -> None:
        while len(acknowledged) < tasks or not finished.is_set():
            number = next(numbers)
            task = await _create_until_acknowledged(scene, connections, number)
            acknowledged.append(Owner(scene.templates.key, task, number % DISTINCT_TASKS))
            if len(acknowledged) >= tasks:
                await asyncio.sleep(PAUSE)  # what remains is to be killed: few tasks are enough

    async def kill() -> None:
        draw = random.Random(0)
        for _ in range(kills):
            await asyncio.sleep(draw.uniform(0, LONGEST_LIFE))
            await asyncio.to_thread(scene.service.kill)
            starts.append(await asyncio.to_thread(scene.service.start))
        finished.set()

    async with Connections(scene.service.address, ADAPTING_CLIENTS) as connections:
        await asyncio.gather(kill(), *(create(connections) for _ in range(ADAPTING_CLIENTS)))
    return acknowledged, starts


async def _create_until_acknowledged(scene: Scene, connections: Connections, number: int) -> str:
    """Send a task with one idempotency key until the service acknowledges it, and return its id."""
    body = scene.inputs.labelled(number % DISTINCT_TASKS)
    header = f"Idempotency-Key: task-{number}\r\n"
    request = encoded_request("POST", "/v1/tasks", scene.templates.key, body, header)
    end = time.monotonic() + 300
    while time.monotonic() < end:
        reply = await connections.send(request)
        if reply.status in (200, 201):
            return str(reply.value["task"])
        if reply.status not in (0, 429, 503, 504):
            raise RuntimeError(f"task {number}: status {reply.status}: {reply.body[:300]!r}")
        await asyncio.sleep(PAUSE)
    raise RuntimeError(f"task {number}: not acknowledged within 300 seconds")


async def _answers_one_by_one(scene: Scene, owners: list[Owner]) -> list[dict[str, list[str]] | None]:
    """Return what each task says of one input; alone, so that a batch is the same before and after."""
    predict = PredictRequests(owners, scene.inputs)
    return await answers(scene.service, [predict.of(owner, 0) for owner in owners], clients=1)


def _listed(scene: Scene) -> list[str]:
    """Return the ids of all tasks of the tenant, page by page."""
    ids: list[str] = []
    path: str | None = "/v1/tasks?limit=100"
    while path is not None:
        page = scene.service.request("GET", path, scene.templates.key)
        ids += [task["task"] for task in page["tasks"]]
        path = None if page["next"] is None else f"/v1/tasks?limit=100&after={page['next']}"
    return ids
