"""Tenants take turns in batches; what is discarded is never given out."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalora.serving.batcher import FairQueue, Turns, Waiting
from metalora.serving.errors import ServiceError


def queue_of(*requests, most_rows=1000):
    """A queue with requests (tenant, rows)."""
    queue = FairQueue(most_rows)
    waiting = [Waiting(tenant, rows) for tenant, rows in requests]
    for request in waiting:
        queue.put(request)
    return queue, waiting


def taken(queue, most_rows):
    return [(part.request.tenant, part.start, part.stop) for part in queue.take(most_rows)]


def test_a_large_request_does_not_hold_up_small_ones():
    queue, _ = queue_of((1, 100), (2, 2), (3, 1))
    assert taken(queue, 12) == [(1, 0, 9), (2, 0, 2), (3, 0, 1)]  # equal shares, and the rest of the room
    assert taken(queue, 64) == [(1, 9, 73)]
    assert queue.rows == 27


def test_all_tenants_have_their_turn_when_there_are_more_than_rows_in_a_batch():
    queue, _ = queue_of(*((tenant, 2) for tenant in range(5)))
    batches = [[tenant for tenant, _, _ in taken(queue, 2)] for _ in range(5)]
    assert batches == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12),
    st.integers(1, 7),
    st.sets(st.integers(0, 11)),
)
def test_every_row_is_given_out_once_in_order_and_no_discarded_one(requests, most_rows, discarded):
    queue, waiting = queue_of(*requests)
    given_out = {id(request): [] for request in waiting}

    def take():
        batch = queue.take(most_rows)
        assert 0 < sum(part.stop - part.start for part in batch) <= most_rows
        for part in batch:
            given_out[id(part.request)] += range(part.start, part.stop)

    take()
    before = {key: list(rows) for key, rows in given_out.items()}
    gone = [waiting[number] for number in discarded if number < len(waiting)]
    for request in gone:
        queue.discard(request)
    while queue.rows:
        take()
    for request in waiting:
        right = before[id(request)] if request in gone else list(range(request.rows))
        assert given_out[id(request)] == right
    assert queue.rows == 0


def test_a_full_queue_says_when_to_try_again():
    queue, (first,) = queue_of((1, 8), most_rows=10)
    queue.measured(1, 10.0)
    with pytest.raises(ServiceError) as busy:
        queue.put(Waiting(2, 3))
    assert busy.value.code == "busy" and busy.value.retry_after == 9  # 8 rows, a second and a bit each
    queue.discard(first)
    queue.put(Waiting(2, 30))  # a large one is taken if nothing waits
    queue.discard(queue.take(1)[0].request)
    with queue.announced(9), pytest.raises(ServiceError):
        queue.put(Waiting(1, 2))
    queue.put(Waiting(1, 2))


def test_a_batch_waits_for_others_if_it_may():
    queue, _ = queue_of((1, 1))
    timer = threading.Timer(0.02, lambda: queue.put(Waiting(2, 1)))
    timer.start()
    start = time.monotonic()
    assert len(queue.take(2, wait=5.0)) == 2 and time.monotonic() - start < 4
    timer.join()


def test_a_closed_queue_gives_out_what_waits_and_takes_nothing():
    queue, _ = queue_of((1, 2), (2, 1))
    queue.close()
    with pytest.raises(ServiceError, match="stopping"):
        queue.put(Waiting(1, 1))
    assert queue.take_request().tenant == 1 and len(queue.take(8)) == 1
    assert queue.take(8) == [] and queue.take_request() is None


def test_low_priority_waits_while_there_is_work_of_high_priority_but_not_for_ever():
    turns, order = Turns(longest=5.0), []

    def low():
        turns.wait()
        order.append("low")

    with turns.first():
        thread = threading.Thread(target=low)
        thread.start()
        time.sleep(0.05)
        order.append("high")
    thread.join()
    assert order == ["high", "low"]
    short = Turns(longest=0.02)
    with short.first():
        assert 0.01 < short.wait() < 2
    assert short.wait() < 0.01
