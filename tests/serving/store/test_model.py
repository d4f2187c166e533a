"""Any sequence of calls does to a store what it does to dictionaries."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from metalora.serving.store import KeyReused, LimitReached, VersionConflict
from support.stored_tasks import add_tenant, example, new_task

LIMIT = 3
TENANTS = st.integers(0, 1)
NUMBERS = st.integers(0, 50)
EXAMPLES = st.none() | st.lists(NUMBERS, max_size=3)
KEYS = st.none() | st.sampled_from(("a", "b"))


class Machine(RuleBasedStateMachine):
    """A store beside a dictionary of its tasks: (tenant, id) -> version, number, numbers of examples."""

    ids = Bundle("ids")
    store = None
    names = itertools.count()

    def __init__(self):
        super().__init__()
        self.tenants = [add_tenant(self.store, f"tenant {next(self.names)}") for _ in range(2)]
        self.tasks, self.requests = {}, {}

    @rule(target=ids, tenant=TENANTS, number=NUMBERS, examples=EXAMPLES, key=KEYS)
    def create(self, tenant, number, examples, key):
        arguments = self.tenants[tenant], self.task(number, examples)
        options = {"limit": LIMIT, "idempotency_key": key, "request_digest": b"%d" % (number % 2)}
        known = self.requests.get((tenant, key)) if key is not None else None
        if known is not None and known[1] != number % 2:
            with pytest.raises(KeyReused):
                self.store.create_task(*arguments, **options)
            return "none"
        if known is None and sum(owner == tenant for owner, _ in self.tasks) == LIMIT:
            with pytest.raises(LimitReached):
                self.store.create_task(*arguments, **options)
            return "none"
        stored, is_new = self.store.create_task(*arguments, **options)
        assert is_new == (known is None)
        if known is not None:
            assert stored.id == known[0]
            return "none"
        self.tasks[tenant, stored.id] = 1, number, examples
        if key is not None:
            self.requests[tenant, key] = stored.id, number % 2
        return stored.id

    @rule(tenant=TENANTS, task_id=ids, number=NUMBERS, examples=EXAMPLES, version=st.integers(1, 3))
    def replace(self, tenant, task_id, number, examples, version):
        known = self.tasks.get((tenant, task_id))
        error = KeyError if known is None else VersionConflict if known[0] != version else None
        arguments = self.tenants[tenant], task_id, self.task(number, examples)
        if error is not None:
            with pytest.raises(error):
                self.store.replace_task(*arguments, version=version)
        else:
            assert self.store.replace_task(*arguments, version=version).version == version + 1
            self.tasks[tenant, task_id] = version + 1, number, examples

    @rule(tenant=TENANTS, task_id=consumes(ids))
    def delete(self, tenant, task_id):
        is_there = self.tasks.pop((tenant, task_id), None) is not None
        assert self.store.delete_task(self.tenants[tenant], task_id) == is_there
        if is_there:
            self.requests = {key: value for key, value in self.requests.items() if value[0] != task_id}

    @invariant()
    def the_store_is_as_the_dictionaries(self):
        for tenant, number in enumerate(self.tenants):
            listed = self.store.tasks(number, limit=99)
            assert [task.id for task in listed] == sorted(task_id for owner, task_id in self.tasks if owner == tenant)
            for task in listed:
                version, name, examples = self.tasks[tenant, task.id]
                assert (task.version, task.summary) == (version, new_task(name).summary)
                assert self.store.content(number, task.id, version) == new_task(name).content
                wanted = None if examples is None else [example(position) for position in examples]
                assert self.store.examples(number, task.id) == wanted

    @staticmethod
    def task(number, examples):
        return new_task(number, examples=None if examples is None else [example(position) for position in examples])


def test_any_sequence_of_calls(store):
    machine = type("MachineOfOneStore", (Machine,), {"store": store})
    run_state_machine_as_test(machine, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))
