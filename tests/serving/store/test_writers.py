"""Threads and processes that write at once: nothing is lost, doubled or above a limit."""

from concurrent.futures import ThreadPoolExecutor

from metalora.serving.store import LimitReached, VersionConflict, open_store
from support.fresh_process import FreshProcess
from support.stored_tasks import NO_LIMIT, add_tenant, create, new_task

WRITE_TASKS = """
import sys
from metalora.serving.store import NewTask, open_store

url, tenant, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = open_store(url)
print(*[store.create_task(tenant, NewTask("learner", b"content", {}), limit=30)[0].id for _ in range(count)])
store.close()
"""
OPEN = "import sys; from metalora.serving.store import open_store; open_store(sys.argv[1]).close()"


def in_threads(function, count):
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, range(count)))


def test_threads_reach_the_limit_exactly(store):
    tenant = add_tenant(store)

    def add(number):
        try:
            return store.create_task(tenant, new_task(number), limit=10)[0].id
        except LimitReached:
            return None

    ids = [task_id for task_id in in_threads(add, 40) if task_id is not None]
    assert len(set(ids)) == 10 and sorted(ids) == [task.id for task in store.tasks(tenant, limit=99)]


def test_one_request_that_is_sent_many_times_at_once_makes_one_task(store):
    tenant = add_tenant(store)
    request = {"limit": NO_LIMIT, "idempotency_key": "key", "request_digest": b"request"}
    answers = in_threads(lambda number: store.create_task(tenant, new_task(number), **request), 16)
    assert len({task.id for task, _ in answers}) == 1 and sum(is_new for _, is_new in answers) == 1
    assert len(store.tasks(tenant, limit=99)) == 1


def test_of_changes_at_once_one_is_made_and_the_others_are_told(store):
    tenant = add_tenant(store)
    stored = create(store, tenant)

    def change(number):
        conflicts = 0
        while True:
            version = store.task(tenant, stored.id).version
            try:
                store.replace_task(tenant, stored.id, new_task(number), version=version)
                return conflicts
            except VersionConflict:
                conflicts += 1

    in_threads(change, 24)
    last = store.task(tenant, stored.id)
    assert last.version == 25
    assert store.content(tenant, stored.id, 25) == new_task(int(last.summary["name"].split()[1])).content


def test_an_error_of_one_writer_is_not_one_of_its_neighbours(store):
    tenant = add_tenant(store)
    learners = ["learner" if number % 2 else None for number in range(20)]  # a task without a learner is an error

    def add(number):
        try:
            return create(store, tenant, number, learner=learners[number]).summary["name"]
        except ValueError:
            return None

    assert in_threads(add, 20) == [f"task {number}" if number % 2 else None for number in range(20)]
    assert len(store.tasks(tenant, limit=99)) == 10


def test_processes_write_into_one_store(store, url):
    tenant = add_tenant(store)
    writers = [FreshProcess(WRITE_TASKS, url, tenant, 10) for _ in range(3)]
    ended = [writer.wait() for writer in writers]
    assert [end.returncode for end in ended] == [0, 0, 0], [end.stderr for end in ended]
    ids = [task_id for end in ended for task_id in end.stdout.split()]
    assert sorted(ids) == [task.id for task in store.tasks(tenant, limit=99)] and len(ids) == 30
    assert "LimitReached" in FreshProcess(WRITE_TASKS, url, tenant, 1).wait().stderr


def test_processes_create_one_store(url):
    ended = [process.wait() for process in [FreshProcess(OPEN, url) for _ in range(3)]]
    assert [end.returncode for end in ended] == [0, 0, 0], [end.stderr for end in ended]
    store = open_store(url, create=False)
    assert store.tenants() == []
    store.close()


def test_a_reader_sees_whole_versions_only(store):
    tenant = add_tenant(store)
    stored = create(store, tenant, 1)

    def write_or_read(number):
        if number % 2:
            for _ in range(10):
                task = store.task(tenant, stored.id)
                content = store.content(tenant, stored.id, task.version)
                if content is not None:
                    assert content == new_task(task.version).content and task.summary["name"] == f"task {task.version}"
        elif number == 0:
            for version in range(1, 11):
                store.replace_task(tenant, stored.id, new_task(version + 1), version=version)

    in_threads(write_or_read, 8)
