"""Which requests are sent again after a failure, and when."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

import httpx

from metalora.client.calls import Call
from metalora.client.errors import ServiceError, Unreachable, error_of

PASSING = (429, 502, 503, 504)  # statuses, also of a proxy, that another attempt may cure


@dataclass(frozen=True)
class Pause:
    """A time to wait before the next attempt.

    Attributes:
        seconds: The time.
    """

    seconds: float


Step = Call | Pause
Outcome = httpx.Response | httpx.TransportError | None  # of a call: its reply, or why there is none; of a pause: None
Result = TypeVar("Result")
Steps = Generator[Step, Outcome, Result]  # what a client carries out one by one, until there is a result


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how soon a request is sent again.

    Attributes:
        attempts: Largest number of attempts, the first one included.
        first_wait: Seconds before the second attempt; they double with each further one.
        longest_wait: Longest time between two attempts, in seconds. If the service asks for a longer one, its error is
            raised at once.
    """

    attempts: int = 5
    first_wait: float = 0.25
    longest_wait: float = 30.0

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Return the seconds to wait after an attempt: what the service asks for, and a random part.

        Args:
            attempt: Number of attempts so far.
            retry_after: What the service asks for, or None.
        """
        growing = min(self.longest_wait, self.first_wait * 2 ** (attempt - 1))
        return (retry_after or 0.0) + random.uniform(growing / 2, growing)


def reply_to(call: Call, policy: RetryPolicy) -> Steps[httpx.Response]:
    """Send a call, again if another attempt may cure the failure, and return the reply.

    Args:
        call: The call.
        policy: How often and how soon it is sent again.

    Raises:
        ServiceError: The service answers with an error, or it cannot be reached.
    """
    attempt = 0
    while True:
        attempt += 1
        failure, repeat = yield from _attempt(call)
        if isinstance(failure, httpx.Response):
            return failure
        failure.attempts = attempt
        too_long = failure.retry_after is not None and failure.retry_after > policy.longest_wait
        if not repeat or too_long or attempt >= policy.attempts:
            raise failure
        yield Pause(policy.wait(attempt, failure.retry_after))


def _attempt(call: Call) -> Steps[tuple[httpx.Response | ServiceError, bool]]:
    """Send a call once; return the reply, or an error and whether another attempt is right."""
    outcome = yield call
    assert outcome is not None
    if isinstance(outcome, httpx.TransportError):
        failure = Unreachable(f"no reply to {call.method} {call.path}: {_in_words(outcome)}", code="unreachable")
        return failure, True
    if outcome.is_success:
        return outcome, False
    refused = error_of(outcome)
    return refused, refused.status in PASSING


def _in_words(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
