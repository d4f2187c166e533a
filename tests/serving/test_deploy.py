"""The files in `deploy` say what the code knows: flags, extras, ports, settings. Nothing is built or started."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from metalora.config import from_dict
from metalora.serving.config import ServingConfig
from support.command import metalora_command

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PORT = 8000
SECRET = re.compile("password|secret|token|key", re.IGNORECASE)


@pytest.fixture(scope="module")
def serve_flags():
    """The flags of `metalora serve`."""
    code, out, _ = metalora_command("serve", "--help")
    assert code == 0
    return set(re.findall(r"--[a-z][a-z-]+", out))


def instructions():
    """The instructions of the Dockerfile, each a word and the rest, with its lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def arguments():
    """The build arguments of the Dockerfile, and what they are by default."""
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")


def last_stage():
    """The instructions after the last FROM, by their word."""
    every = instructions()
    start = max(number for number, (word, _) in enumerate(every) if word == "FROM")
    return dict(every[start:])


def yaml_file(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def test_the_extras_of_the_image_are_those_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(arguments()["EXTRAS"].split(",")) <= set(declared) and "ray" in declared
    installed = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert all("--constraint constraints.txt" in command for command in installed)
    names = [word for command in installed for word in shlex.split(command.partition("constraints.txt")[2])]
    assert names == ["torch", "torchvision", ".[$EXTRAS]", "${RAY:+ray[serve]==$RAY}"]
    assert "torch==" in (ROOT / "constraints.txt").read_text()


def test_what_the_image_copies_exists_and_is_sent_to_the_builder():
    copied = [rest.split()[:-1] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    sent = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == sent
    assert all((ROOT / name).exists() for name in sent)


def test_the_image_runs_as_a_user_without_rights_and_holds_no_secret():
    stage = last_stage()
    assert stage["USER"] == "10001" and "--uid 10001" in stage["RUN"]
    assert not [rest for word, rest in instructions() if word in ("ENV", "ARG") and SECRET.search(rest)]


def test_the_image_serves_with_flags_that_exist_at_the_port_that_it_checks(serve_flags):
    stage = last_stage()
    command = yaml.safe_load(stage["CMD"])
    assert {word for word in command if word.startswith("--")} <= serve_flags and command[0] == "serve"
    assert command[command.index("--port") + 1] == stage["EXPOSE"] == str(PORT)
    assert stage["HEALTHCHECK"].endswith(f'"http://127.0.0.1:{PORT}/readyz"]')


def test_compose_starts_what_exists_with_a_password_from_outside(serve_flags):
    services = yaml_file("compose.yaml")["services"]
    service, postgres = services["service"], services["postgres"]
    command = service["command"]
    assert {word for word in command if word.startswith("--")} <= serve_flags
    assert command[command.index("--port") + 1] == str(PORT) and service["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    user, database = postgres["environment"]["POSTGRES_USER"], postgres["environment"]["POSTGRES_DB"]
    assert command[command.index("--store") + 1] == f"postgresql://{user}@postgres/{database}"
    for one, name in ((service, "PGPASSWORD"), (postgres, "POSTGRES_PASSWORD")):
        assert one["environment"][name].startswith("${POSTGRES_PASSWORD:?")
    assert service["depends_on"]["postgres"]["condition"] == "service_healthy" and "healthcheck" in postgres
    assert {volume.split(":")[0] for volume in postgres["volumes"]} == set(yaml_file("compose.yaml")["volumes"])
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT and (ROOT / service["build"]["dockerfile"]).exists()
    assert int(service["stop_grace_period"].rstrip("s")) > ServingConfig().stop_s


def test_the_file_of_ray_gives_settings_that_exist():
    described = yaml_file("serve.yaml")
    (application,) = described["applications"]
    (deployment,) = application["deployments"]
    config = from_dict(ServingConfig, application["args"]["config"])
    assert described["http_options"]["port"] == PORT
    assert deployment["graceful_shutdown_timeout_s"] > config.stop_s
    assert deployment["ray_actor_options"]["num_cpus"] == config.threads


def test_ray_accepts_its_file():
    ray_app = pytest.importorskip("metalora.serving.ray_app", reason="ray is not installed")
    from ray.serve.schema import ServeDeploySchema

    described = yaml_file("serve.yaml")
    (application,) = ServeDeploySchema.model_validate(described).applications
    module, _, name = application.import_path.partition(":")
    assert module == ray_app.__name__
    built = getattr(ray_app, name)(application.args)
    assert [application.name, application.deployments[0].name] == [ray_app.NAME, built._bound_deployment.name]


def test_the_file_of_kubernetes_is_that_of_ray_on_the_same_image():
    described = yaml_file("kuberay.yaml")
    assert yaml.safe_load(described["spec"]["serveConfigV2"]) == yaml_file("serve.yaml")
    cluster = described["spec"]["rayClusterConfig"]
    assert f"RAY={cluster['rayVersion']}" in (DEPLOY / "Dockerfile").read_text()
    (workers,) = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {port["name"]: port["containerPort"] for port in container["ports"]}["serve"] == PORT
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 10001}
        assert [one["mountPath"] for one in container["volumeMounts"]] == ["/learner"]
        assert [one["name"] for one in container["env"]] == ["PGPASSWORD"] and "value" not in container["env"][0]
        assert (
            int(container["resources"]["requests"]["cpu"])
            >= yaml_file("serve.yaml")["applications"][0]["args"]["config"]["threads"]
        )
