"""What `metalora bench --what serving` times: every case computes the rows of the same tenants."""

import dataclasses

import pytest
import torch

from metalora.bench.config import BenchConfig
from metalora.bench.report import run
from metalora.bench.serving import FROZEN, LOOP, ONE, PEFT, TABLE, serving_cases

SMALL = BenchConfig(layers=1, batch=3, tokens=4, rank=2, rounds=2, keep_memory=False)
PICTURES = dataclasses.replace(SMALL, model="timm:resnet10t", targets="conv", size=32)


def tensor_of(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize("config", (SMALL, PICTURES), ids=("texts", "pictures"))
def test_the_cases_compute_what_their_names_say(config):
    outputs = {name: case() for name, case in serving_cases(config).items()}
    looped = torch.cat([tensor_of(output) for output in outputs.pop(LOOP)])
    outputs = {name: tensor_of(output) for name, output in outputs.items()}
    torch.testing.assert_close(outputs[TABLE], looped, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[ONE][0], looped[0], rtol=1e-4, atol=1e-4)  # the tenant of the first row
    for name in (FROZEN, PEFT, ONE):
        assert outputs[name].shape == looped.shape and not torch.allclose(outputs[name], looped)
    assert not any(output.requires_grad for output in outputs.values())


def test_a_setting_without_effect_is_refused():
    with pytest.raises(ValueError, match="--what serving takes only rank, rounds, keep_memory, model, targets"):
        run(dataclasses.replace(SMALL, methods=("lora",)), "serving", None)


def test_a_row_for_each_case_with_ratios_to_one_tenant(tmp_path):
    row = run(SMALL, "serving", tmp_path / "rows.jsonl")
    cases = {case["case"]: case for case in row["results"]["cases"]}
    assert set(cases) == {ONE, TABLE, LOOP, PEFT, FROZEN} and row["config"]["what"] == "serving"
    assert cases[ONE]["cpu"] == cases[ONE]["wall"] == 1
    assert all(0 < case["cpu_low"] <= case["cpu"] <= case["cpu_high"] for case in cases.values())
