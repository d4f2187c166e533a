"""Requests that are drawn from the OpenAPI document of the app: no answer is a fault, and none is undocumented."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from metalora.serving.app import make_app
from metalora.serving.config import ServingConfig
from metalora.serving.keys import key_digest, new_key
from metalora.serving.store import open_store
from support.serving import sentences, task_body

load_all_checks()
# A schema cannot say that there are as many labels as inputs, or that bytes are a picture: such requests are refused.
NOT_OF_A_SCHEMA = [CHECKS.get_one("positive_data_acceptance")]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)


class FuzzedApp:
    """An app with a tenant and a task, as schemathesis reads it."""

    def __init__(self, learner, folder):
        key = new_key()
        store = open_store(folder / "tasks.db")
        store.add_tenant("a", key_digest(key))
        self.app = make_app([learner], store, ServingConfig(max_tasks=10_000))
        self.headers = {"Authorization": f"Bearer {key}"}
        self.schema = schemathesis.openapi.from_asgi("/openapi.json", self.app)
        self.operations = [found.ok() for found in self.schema.get_all_operations()]
        self.task = self.new_task()

    def new_task(self):
        """The id of a new task that keeps its examples."""
        create = next(operation for operation in self.operations if operation.label == "POST /v1/tasks")
        body = task_body(sentences(4), ["x", "y", "x", "y"], keep_examples=True)
        case = create.Case(body=body, media_type="application/json")
        return case.call(headers=self.headers).json()["task"]

    def check(self, case, is_of_task):
        """Send a request, maybe of the task that there is, and check the answer in every way."""
        if is_of_task and "task_id" in case.path_parameters:
            case.path_parameters["task_id"] = self.task
        response = case.call_and_validate(excluded_checks=NOT_OF_A_SCHEMA)
        assert response.status_code < 500
        if response.status_code == 204:
            self.task = self.new_task()


@pytest.fixture
def fuzzed(text_learner, tmp_path):
    """An app; schemathesis stops it at the end of the test."""
    return FuzzedApp(text_learner, tmp_path)


def fuzz(fuzzed, operation, mode, requests):
    """Check an operation with requests of a mode: those that the document allows, or those that it does not."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(
        max_examples=requests, deadline=None, derandomize=True, suppress_health_check=checks, phases=[Phase.generate]
    )
    @given(case=operation.as_strategy(generation_mode=mode, headers=fuzzed.headers), is_of_task=st.booleans())
    def check(case, is_of_task):
        fuzzed.check(case, is_of_task)

    check()


@pytest.mark.parametrize("requests", [7, pytest.param(360, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
def test_no_answer_is_a_fault_or_undocumented(mode, requests, fuzzed):
    for operation in fuzzed.operations:
        if mode is GenerationMode.POSITIVE or operation.body or operation.query:  # any text may be an id
            fuzz(fuzzed, operation, mode, requests)
