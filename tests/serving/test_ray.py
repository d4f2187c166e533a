"""The service on Ray Serve: what needs no cluster, and, as slow tests, replicas that are killed under load."""

import asyncio
import http.client
import time

import httpx
import pytest

from metalora.serving.config import ServingConfig
from metalora.serving.server import Launch
from support.command import metalora_command
from support.service_load import ServedProcesses, kill, loaded, make_tasks
from support.serving import ServedApp

ray = pytest.importorskip("ray", reason="ray is not installed")
from metalora.serving import ray_app, ray_metrics  # noqa: E402

POSTGRES = "postgresql://metalora@host/metalora"
CLIENTS, TASKS, SECONDS = 8, 8, 12


def options(deployed):
    """The deployment of an application."""
    return deployed._bound_deployment


def test_a_configuration_file_gives_learners_store_and_settings():
    arguments = {"learner": "/new", "also": ["/old"], "store": POSTGRES, "config": {"threads": 3, "stop_s": 7}}
    deployment = options(ray_app.application(arguments))
    assert deployment.ray_actor_options["num_cpus"] == 3
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 7
    assert deployment._deployment_config.max_ongoing_requests == ServingConfig().max_queue_rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learner": "/new"}, "args: missing key 'store'"),
        ({"learner": "/new", "store": POSTGRES, "replica": 2}, "args: unknown key 'replica'"),
        (
            {"learner": "/new", "store": POSTGRES, "config": {"thread": 2}},
            "unknown key 'thread'; did you mean 'threads'",
        ),
    ],
)
def test_a_wrong_configuration_file_is_an_error_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ray_app.application(arguments)


def test_a_file_is_no_store_of_several_machines(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    with pytest.raises(ValueError, match="tasks.db: a file is the store of one machine, and this cluster has 2"):
        ray_app.bound_application(Launch(("/learner",), "tasks.db"), replicas=2)
    assert not options(ray_app.bound_application(Launch(("/learner",), POSTGRES))).ray_actor_options["resources"]


def test_replicas_on_a_file_stay_on_this_machine(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    deployment = options(ray_app.bound_application(Launch(("/learner",), "tasks.db"), replicas=2))
    assert list(deployment.ray_actor_options["resources"]) == ["node:10.0.0.7"] and deployment.num_replicas == 2


def test_paths_are_absolute_for_replicas_and_a_url_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launch = ray_app.absolute(Launch(("new", "old"), "tasks.db"))
    assert launch.learners == (f"{tmp_path}/new", f"{tmp_path}/old") and launch.store == f"{tmp_path}/tasks.db"
    assert ray_app.absolute(Launch(("new",), POSTGRES)).store == POSTGRES


def test_any_free_port_is_refused(tmp_path):
    code, out, err = metalora_command("serve", tmp_path, "--store", tmp_path / "tasks.db", "--ray", "--port", "0")
    assert code == 2 and "--port 0 does not go with --ray" in err and not (tmp_path / "tasks.db").exists()


def test_the_proxy_of_ray_alone_gives_the_id_of_a_request(text_learner, tmp_path):
    async def scenario():
        async with ServedApp(text_learner, tmp_path) as served:
            transport = httpx.ASGITransport(ray_app.WithoutRequestId(served.app))
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.get("/readyz")

    answer = asyncio.run(scenario())
    assert answer.json() == {"status": "ready"} and "x-request-id" not in answer.headers


def test_a_replica_is_ill_if_a_lane_has_ended_and_not_if_the_store_does_not_answer(text_learner, tmp_path):
    replica = ray_app.Replica()

    async def scenario():
        async with ServedApp(text_learner, tmp_path) as served:
            replica.app = served.app
            served.store.check = None
            await replica.check_health()

    asyncio.run(scenario())
    with pytest.raises(RuntimeError, match="a thread of the network has ended"):
        asyncio.run(replica.check_health())


def test_ray_exports_the_numbers_of_a_replica(text_learner, tmp_path, monkeypatch):
    exported = {}

    class Gauge:
        def __init__(self, name, description, tag_keys):
            self.name, self.tag_keys = name, tag_keys

        def set(self, value, tags):
            assert set(tags) == set(self.tag_keys)
            exported[(self.name, *sorted(tags.items()))] = value

    monkeypatch.setattr(ray_metrics, "Gauge", Gauge)

    async def scenario():
        async with ServedApp(text_learner, tmp_path) as served:
            await served.client.get("/v1/tasks")
            ray_metrics.RayExport(served.service.metrics.registry).export()

    asyncio.run(scenario())
    assert exported[("metalora_requests_total", ("route", "/v1/tasks"), ("status", "200"))] == 1
    assert exported[("metalora_request_seconds_bucket", ("le", "+Inf"), ("route", "/v1/tasks"))] == 1
    assert exported[("metalora_hot_tasks",)] == 0


@pytest.mark.slow
def test_a_killed_replica_costs_few_requests_and_no_right_answer(text_folder, text_learner, tmp_path):
    """Tasks that one replica has made are answered by the others, and by those that Ray starts in its place."""
    flags = ("--ray", "--replicas", "2", "--port", "8792", "--threads", "1")
    with ServedProcesses(text_folder, tmp_path / "tasks.db", tmp_path / "log", *flags) as service:
        expected = make_tasks(service, text_learner, TASKS)
        first = service.replicas()
        assert len(first) == 2
        killed = [_answers_with_a_kill(service, expected, pid) for pid in first]
        assert not set(first) & set(service.replicas())
        connection = http.client.HTTPConnection(service.host, timeout=60)
        assert service.call(connection, "DELETE", f"/v1/tasks/{min(expected)}")[0] == 204
        assert {service.call(connection, "GET", f"/v1/tasks/{min(expected)}")[0] for _ in range(20)} == {404}
    for answers in killed:
        assert answers.wrong == 0 and len(answers.failures) <= 0.01 * answers.count and answers.count > 100


def _answers_with_a_kill(service, expected, pid):
    answers, _ = loaded(service, expected, CLIENTS, SECONDS, lambda: kill(pid))
    until = time.monotonic() + 120
    while len(service.replicas()) < 2 and time.monotonic() < until:  # Ray starts another one
        time.sleep(0.5)
    return answers
