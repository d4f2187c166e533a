"""What is tried on the service: each mode yields its measurements."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving_load.connections import Connections, encoded_request
from serving_load.learners import Inputs
from serving_load.measuring import Figures, offer, saturate
from serving_load.process import ServedProcess
from serving_load.tenants import Owner, Templates

QUERIES = 32  # different inputs of predictions
CLIENTS = 64
ADAPTING_CLIENTS = 8
WARM_UP_SECONDS = 1.0
WARM_UP_TENANTS = 2000  # more than have their task in memory
QUIET_SHARE = 0.25  # of the saturated rate, in the mode `mixed`
HALF = 0.5

Measurement = tuple[dict[str, object], Figures]  # what was measured, and the figures


@dataclass
class Scene:
    """A service that runs, with its tenants.

    Attributes:
        service: Its process.
        templates: The tasks of its tenants.
        inputs: Its inputs.
        owners: The tenants so far.
    """

    service: ServedProcess
    templates: Templates
    inputs: Inputs
    owners: list[Owner] = field(default_factory=list)

    def tenants(self, count: int) -> list[Owner]:
        """Return this many tenants; those that are not there yet are added."""
        missing = count - len(self.owners)
        if missing > 0:
            self.owners += self.templates.add_tenants(len(self.owners), missing)
        return self.owners[:count]

    def predictions(self, count: int) -> "PredictRequests":
        """Return requests for predictions of this many tenants."""
        return PredictRequests(self.tenants(count), self.inputs)


class PredictRequests:
    """The request of a number: a tenant and an input, both drawn from the number.

    Args:
        owners: The tenants.
        inputs: The inputs of the service.
    """

    def __init__(self, owners: list[Owner], inputs: Inputs):
        self.owners = owners
        self.queries = [inputs.query(number) for number in range(QUERIES)]

    def __call__(self, number: int) -> bytes:
        draw = random.Random(number)
        return self.of(draw.choice(self.owners), draw.randrange(QUERIES))

    def of(self, owner: Owner, query: int) -> bytes:
        """Return the request of a tenant for an input."""
        return encoded_request("POST", f"/v1/tasks/{owner.task}/predict", owner.key, self.queries[query])


def run_tenants(scene: Scene, counts: list[int], seconds: float) -> Iterator[Measurement]:
    """Saturate the service with requests of few and of many tenants, then offer half of what it could do.

    Every tenant has had an answer before: the first use of a task is not what is measured.
    """
    for count in counts:
        requests = scene.predictions(count)
        first_uses = [requests.of(owner, 0) for owner in requests.owners[-WARM_UP_TENANTS:]]
        asyncio.run(answers(scene.service, first_uses, CLIENTS))
        asyncio.run(saturate(scene.service, requests, WARM_UP_SECONDS, CLIENTS))
        full = asyncio.run(saturate(scene.service, requests, seconds, CLIENTS))
        yield {"tenants": count, "load": "saturated"}, full
        rate = HALF * float(str(full["requests_per_second"]))
        yield {"tenants": count, "load": "half"}, asyncio.run(offer(scene.service, requests, rate, seconds))


def run_mixed(scene: Scene, tenants: int, seconds: float) -> Iterator[Measurement]:
    """Offer predictions at a quarter of the saturated rate, alone and while clients make tasks without a pause."""
    requests = scene.predictions(tenants)
    full = asyncio.run(saturate(scene.service, requests, seconds, CLIENTS))
    rate = QUIET_SHARE * float(str(full["requests_per_second"]))
    yield {"adapting_clients": 0}, asyncio.run(offer(scene.service, requests, rate, seconds))
    yield {"adapting_clients": ADAPTING_CLIENTS}, asyncio.run(_offer_while_adapting(scene, requests, rate, seconds))


async def _offer_while_adapting(scene: Scene, requests: PredictRequests, rate: float, seconds: float) -> Figures:
    key = scene.templates.key
    bodies = [encoded_request("POST", "/v1/tasks", key, scene.inputs.labelled(number)) for number in range(8)]
    adapting = saturate(scene.service, lambda number: bodies[number % len(bodies)], seconds, ADAPTING_CLIENTS)
    predicting = offer(scene.service, requests, rate, seconds)
    adapted, predicted = await asyncio.gather(adapting, predicting)
    return predicted | {"adaptations_per_second": adapted["requests_per_second"], "adapting_errors": adapted["errors"]}


def run_soak(scene: Scene, tenants: int, minutes: int, seconds: float) -> Iterator[Measurement]:
    """Offer half of the saturated rate for minutes; a minute may be shorter in a short run."""
    requests = scene.predictions(tenants)
    full = asyncio.run(saturate(scene.service, requests, min(seconds, 20.0), CLIENTS))
    rate = HALF * float(str(full["requests_per_second"]))
    for minute in range(minutes):
        yield {"tenants": tenants, "minute": minute}, asyncio.run(offer(scene.service, requests, rate, seconds))


def run_labels(scene: Scene, tenants: int, requests: int) -> Iterator[Measurement]:
    """Send requests of many tenants at the same time; every label must be the one that the tenant gets alone."""
    predict = scene.predictions(tenants)
    pairs = list(itertools.islice(itertools.cycle(itertools.product(predict.owners, range(QUERIES))), requests))
    distinct = dict.fromkeys(pairs)
    alone = asyncio.run(answers(scene.service, [predict.of(*pair) for pair in distinct], clients=1))
    right = dict(zip(distinct, alone, strict=True))
    random.Random(0).shuffle(pairs)
    together = asyncio.run(answers(scene.service, [predict.of(*pair) for pair in pairs], clients=requests))
    errors = sum(answer is None for answer in [*alone, *together])
    changed = sum(
        answer is not None and right[pair] is not None and answer["labels"] != right[pair]["labels"]
        for pair, answer in zip(pairs, together, strict=True)
    )
    foreign = sum(
        answer is not None and answer["labels"][0].split("-")[0] != str(owner.template)
        for (owner, _), answer in zip(pairs, together, strict=True)
    )
    figures: Figures = {"requests": requests, "errors": errors, "changed_labels": changed, "foreign_labels": foreign}
    yield {"tenants": tenants}, figures


async def answers(service: ServedProcess, requests: list[bytes], clients: int) -> list[dict[str, list[str]] | None]:
    """Return the replies to requests, as JSON, in their order; None for an error."""
    async with Connections(service.address, clients) as connections:
        replies = await asyncio.gather(*(connections.send(request) for request in requests))
    return [reply.value if reply.status == 200 else None for reply in replies]
