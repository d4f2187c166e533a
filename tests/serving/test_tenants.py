"""A tenant sees nothing of another: laws over every path, a replica on the same store, and a random history."""

import asyncio
import contextlib
import io
import json
import logging

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from metalora.serving.app import make_app
from metalora.serving.config import ServingConfig
from metalora.serving.logs import LOGGER, JsonLines
from metalora.serving.store import open_store
from support.serving import ServedApp, sentences, task_body, two_labels

NEVER = "t_" + "A" * 22
MALFORMED = ("x", "t_", "t_' OR 1=1 --", "%00", "t_%2e%2e", "T_" + "A" * 22, "ä", "t_" + "A" * 5000)
QUERY = {"inputs": {"texts": sentences(3, seed=9)}}
MORE = task_body(sentences(2, seed=8), ["ours-0", "ours-1"])
SECRET = "canary"  # in all that the first tenant sends
TASK_PATHS = (  # of one task: method, end of the path, body
    ("GET", "", None),
    ("GET", "/file", None),
    ("POST", "/predict", QUERY),
    ("POST", "/embed", QUERY),
    ("POST", "/examples", MORE),
    ("DELETE", "", None),
)
PATHS = (("GET", "/v1/tasks", None), ("POST", "/v1/tasks", MORE), ("GET", "/v1/service", None))
NAMES = [f"{method} {end}" for method, end, _ in TASK_PATHS]
VARYING = ("x-request-id", "date")


def run(learner, folder, scenario, tenants=("a", "b")):
    """Run a coroutine on a served app with two tenants."""

    async def main():
        async with ServedApp(learner, folder, tenants) as served:
            return await scenario(served)

    return asyncio.run(main())


async def created(client, labels=("theirs-0", "theirs-1"), seed=0, **fields):
    """The id of a new task with two classes; its examples are kept."""
    body = task_body(sentences(6, seed=seed), [labels[k % 2] for k in range(6)], keep_examples=True)
    answer = await client.post("/v1/tasks", json=body | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["task"]


def seen(answer):
    """What a client can tell answers apart by."""
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in VARYING)
    return answer.status_code, answer.content, headers


@contextlib.asynccontextmanager
async def replica(learner, folder, key):
    """A client of a second app on the store of the first."""
    app = make_app([learner], open_store(folder / "tasks.db"), ServingConfig())
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://replica", headers=headers
    ) as client:
        yield client
    await asyncio.to_thread(app.state.service.close)


def test_the_table_has_every_path_of_a_task(text_learner, tmp_path):
    async def scenario(served):
        return (await served.client.get("/openapi.json")).json()["paths"]

    paths = run(text_learner, tmp_path, scenario)
    stated = {(method.upper(), path) for path, methods in paths.items() for method in methods if "{" in path}
    assert stated == {(method, "/v1/tasks/{task_id}" + end) for method, end, _ in TASK_PATHS}


@pytest.mark.parametrize(("method", "end", "body"), TASK_PATHS, ids=NAMES)
@pytest.mark.parametrize("content", ["valid", "broken"])
def test_foreign_deleted_unknown_and_malformed_ids_are_answered_alike(
    method, end, body, content, text_learner, tmp_path
):
    async def scenario(served):
        mine, theirs = served.clients["a"], served.clients["b"]
        foreign, deleted = await created(theirs), await created(mine)
        await theirs.post(f"/v1/tasks/{foreign}/predict", json=QUERY)  # it is in memory now
        before = (await theirs.get(f"/v1/tasks/{foreign}")).json()
        await mine.delete(f"/v1/tasks/{deleted}")
        sent = (
            {"json": body} if content == "valid" else {"content": b"{", "headers": {"content-type": "application/json"}}
        )
        ids = (NEVER, foreign, deleted, *MALFORMED)
        answers = [await mine.request(method, f"/v1/tasks/{task}{end}", **sent) for task in ids]
        assert (await theirs.get(f"/v1/tasks/{foreign}")).json() == before
        return answers

    never, *others = map(seen, run(text_learner, tmp_path, scenario))
    assert never[0] == 404 and json.loads(never[1])["error"]["code"] == "not_found"
    assert all(other == never for other in others)


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer ml_wrong"}, {"Authorization": "Basic bWw6"}])
def test_without_a_valid_key_every_path_is_answered_alike(header, text_learner, tmp_path):
    async def scenario(served):
        task = await created(served.client)
        nobody = httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://service", headers=header)
        ids = (task, NEVER, "x")
        requests = [(method, f"/v1/tasks/{name}{end}", body) for method, end, body in TASK_PATHS for name in ids]
        return [await nobody.request(method, path, json=body) for method, path, body in (*requests, *PATHS)]

    first, *others = map(seen, run(text_learner, tmp_path, scenario))
    assert first[0] == 401 and all(other == first for other in others)


def test_nothing_of_a_tenant_is_in_what_another_gets_in_the_metrics_or_in_the_log(text_learner, tmp_path):
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.setFormatter(JsonLines())

    async def scenario(served):
        mine, theirs = served.clients["a"], served.clients["b"]
        labels = (f"{SECRET} 0", f"{SECRET} 1")
        task = await created(mine, labels, name=f"{SECRET} name", seed=1)
        body = task_body([f"{SECRET} apple", f"{SECRET} pear"], labels)
        for method, end, content in TASK_PATHS[:4]:
            assert (await mine.request(method, f"/v1/tasks/{task}{end}", json=content)).status_code == 200
        await mine.post(f"/v1/tasks/{task}/examples", json=body)
        await mine.post(f"/v1/tasks/{task}/examples", json=body | {"labels": [SECRET]})  # an error
        await mine.post("/v1/tasks", json={SECRET: SECRET})
        own = await created(theirs)
        ids = (task, own, SECRET)
        requests = [(method, f"/v1/tasks/{name}{end}", content) for method, end, content in TASK_PATHS for name in ids]
        answers = [await theirs.request(method, path, json=content) for method, path, content in (*requests, *PATHS)]
        answers += [await theirs.get(path) for path in ("/metrics", "/healthz", "/readyz", "/openapi.json")]
        return task, served.keys, answers

    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        task, keys, answers = run(text_learner, tmp_path, scenario)
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
    assert log.getvalue().count("\n") > 20
    told = log.getvalue() + "".join(answer.text + str(answer.headers) for answer in answers)
    for secret in (SECRET, task, *keys.values()):
        assert secret not in told


def test_a_list_has_the_tenants_own_tasks_on_every_page(text_learner, tmp_path):
    async def scenario(served):
        own = {name: {await created(client, seed=seed) for seed in range(3)} for name, client in served.clients.items()}
        for name, client in served.clients.items():
            ids, after = [], "t_"
            while after is not None:
                page = (await client.get("/v1/tasks", params={"limit": 1, "after": after})).json()
                ids, after = ids + [task["task"] for task in page["tasks"]], page["next"]
            assert ids == sorted(own[name])

    run(text_learner, tmp_path, scenario)


def test_an_idempotency_key_belongs_to_its_tenant(text_learner, tmp_path):
    header = {"Idempotency-Key": "one"}
    body = task_body(sentences(6), two_labels(6))

    async def scenario(served):
        answers = {}
        for name, client in served.clients.items():
            answers[name] = [await client.post("/v1/tasks", json=body, headers=header) for _ in range(2)]
            changed = await client.post("/v1/tasks", json=body | {"name": "other"}, headers=header)
            assert changed.status_code == 409 and changed.json()["error"]["code"] == "conflict"
        return answers

    answers = run(text_learner, tmp_path, scenario)
    ids = {name: {answer.json()["task"] for answer in pair} for name, pair in answers.items()}
    assert {name: [answer.status_code for answer in pair] for name, pair in answers.items()} == dict.fromkeys(
        "ab", [201, 200]
    )
    assert len(ids["a"]) == len(ids["b"]) == 1 and ids["a"] != ids["b"]


def test_a_deleted_task_and_a_new_version_count_at_once_on_another_replica(text_learner, tmp_path):
    async def scenario(served):
        task = await created(served.client)
        async with replica(text_learner, tmp_path, served.keys["a"]) as second:
            path = f"/v1/tasks/{task}/predict"
            assert (await second.post(path, json=QUERY)).json()["version"] == 1
            more = task_body(sentences(2, seed=8), ["a third", "a third"])
            assert (await served.client.post(f"/v1/tasks/{task}/examples", json=more)).json()["version"] == 2
            newer = (await second.post(path, json=QUERY)).json()
            assert newer["version"] == 2 and "a third" in newer["classes"]
            assert (await served.client.delete(f"/v1/tasks/{task}")).status_code == 204
            assert seen(await second.post(path, json=QUERY)) == seen(
                await second.post(f"/v1/tasks/{NEVER}/predict", json=QUERY)
            )

    run(text_learner, tmp_path, scenario)


@pytest.mark.parametrize(("method", "end", "body"), TASK_PATHS, ids=NAMES)
def test_a_revoked_key_counts_at_once_on_every_replica(method, end, body, text_learner, tmp_path):
    async def scenario(served):
        task = await created(served.client)
        async with replica(text_learner, tmp_path, served.keys["a"]) as second:
            path = f"/v1/tasks/{task}"
            assert (await second.post(f"{path}/predict", json=QUERY)).status_code == 200
            served.store.revoke("a")
            assert (await served.client.request(method, path + end, json=body)).status_code == 401
            assert (await second.request(method, path + end, json=body)).status_code == 401
            assert (await served.clients["b"].get("/v1/tasks")).status_code == 200

    run(text_learner, tmp_path, scenario)


class Tenants(RuleBasedStateMachine):
    """Three tenants that do anything to any task, next to a dict that says what each must see.

    The dict has, for each tenant and id, the labelled inputs of the task; the library says what it predicts.
    """

    learner, folders = None, None  # set by the test
    tenant = st.sampled_from("abc")
    number = st.integers(0, 5)

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.served = ServedApp(self.learner, self.folders.mktemp("store"), "abc")
        self.right = {name: {} for name in "abc"}  # tenant -> id -> (version, inputs, labels)
        self.ids = [NEVER]

    def request(self, tenant, method, path, body=None):
        answer = self.runner.run(self.served.clients[tenant].request(method, f"/v1/tasks{path}", json=body))
        assert answer.status_code in (200, 201, 204, 404), answer.text
        return answer

    @rule(tenant=tenant, seed=number)
    def create(self, tenant, seed):
        inputs, labels = sentences(4, seed), [f"{tenant}{seed}-{k % 2}" for k in range(4)]
        task = self.request(tenant, "POST", "", task_body(inputs, labels, keep_examples=True)).json()
        assert task["task"] not in self.ids and task["classes"] == labels[:2]
        self.ids.append(task["task"])
        self.right[tenant][task["task"]] = (1, inputs, labels)

    @rule(tenant=tenant, choice=number, seed=number)
    def predict(self, tenant, choice, seed):
        task, queries = self.ids[choice % len(self.ids)], sentences(3, 50 + seed)
        answer = self.request(tenant, "POST", f"/{task}/predict", {"inputs": {"texts": queries}})
        if task not in self.right[tenant]:
            assert answer.status_code == 404
            return
        version, inputs, labels = self.right[tenant][task]
        assert answer.json()["version"] == version
        assert answer.json()["labels"] == self.learner.adapt(inputs, labels).predict(queries).tolist()

    @rule(tenant=tenant, choice=number, seed=number)
    def add(self, tenant, choice, seed):
        task = self.ids[choice % len(self.ids)]
        inputs, labels = sentences(2, 100 + seed), [f"{tenant}-more"] * 2
        answer = self.request(tenant, "POST", f"/{task}/examples", task_body(inputs, labels))
        if task not in self.right[tenant]:
            assert answer.status_code == 404
            return
        version, old_inputs, old_labels = self.right[tenant][task]
        self.right[tenant][task] = (version + 1, old_inputs + inputs, old_labels + labels)
        assert answer.json()["version"] == version + 1 and answer.json()["examples"] == len(old_inputs) + 2

    @rule(tenant=tenant, choice=number)
    def delete(self, tenant, choice):
        task = self.ids[choice % len(self.ids)]
        status = self.request(tenant, "DELETE", f"/{task}").status_code
        assert status == (204 if self.right[tenant].pop(task, None) else 404)

    @precondition(lambda self: len(self.ids) > 1)
    @rule(tenant=tenant)
    def list(self, tenant):
        page = self.request(tenant, "GET", "").json()
        assert [task["task"] for task in page["tasks"]] == sorted(self.right[tenant])
        assert [task["version"] for task in page["tasks"]] == [
            self.right[tenant][t][0] for t in sorted(self.right[tenant])
        ]

    def teardown(self):
        self.runner.run(self.served.__aexit__())
        self.runner.close()


@pytest.mark.parametrize(("histories", "steps"), [(4, 15), pytest.param(40, 60, marks=pytest.mark.slow)])
def test_a_random_history_of_three_tenants(histories, steps, text_learner, tmp_path_factory):
    from hypothesis.stateful import run_state_machine_as_test

    class Machine(Tenants):
        learner, folders = text_learner, tmp_path_factory

    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=histories,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=checks,
            derandomize=True,
        ),
    )
