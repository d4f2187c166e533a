"""Interleaved timing: what is counted, and how a ratio is formed. No clock is asserted on."""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from metalora.adapters.attach import adapter_of
from metalora.bench import cases, encoder, memory, report, scaling, steps
from metalora.bench.config import BenchConfig
from metalora.bench.plot import plot
from metalora.bench.report import run
from metalora.bench.store import RowStore
from metalora.bench.tasks import tasks_in_a_batch
from metalora.bench.timing import interleaved, ratio
from metalora.config import ConditionConfig
from support.adapters import randomise
from support.command import metalora_command
from support.fresh_process import SERVER, run_fresh

TINY = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=50)


def test_cases_take_turns_and_warm_rounds_do_not_count():
    seen = []
    cases = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = interleaved(cases, 3, warm=1)
    assert seen == ["a", "b"] * 4 and {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_formed_round_by_round():
    result = ratio({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]}, "a", "b")
    assert (result.median, result.low, result.high, result.seconds) == (2.0, 1.5, 2.5, 4.0)
    assert ratio({"a": [3.0], "b": [2.0]}, "a", "b").median == 1.5


def test_no_rounds():
    with pytest.raises(ValueError, match="rounds is 0"):
        interleaved({}, 0)


def test_many_tasks_in_a_batch():
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    ratios = {result.name: result for result in tasks_in_a_batch(rounds=1, batch=3, tokens=4)}
    expected = {f"{what}, {who}" for what in ("forward", "training step") for who in ("many tasks", "one id")}
    assert set(ratios) == expected | {"forward, peft: a LoRA each"}
    assert all(result.median > 0 and result.reference.endswith("one task") for result in ratios.values())


def test_adapters_beside_the_frozen_model_and_peft(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    monkeypatch.setattr(memory, "peak_bytes", lambda config, name: 2**20)
    config = BenchConfig(
        methods=("metatt-4d",),
        peers=("lora", "vera"),
        rank=2,
        batch=2,
        tokens=3,
        rounds=1,
        plain=True,
        dense=True,
        keep_memory=False,
        merged=True,
        layers=2,
    )
    row = run(config, "steps", tmp_path / "rows.jsonl")
    cases = {row["case"]: row for row in row["results"]["cases"]}
    assert list(cases) == [
        "frozen model",
        "peft: lora",
        "peft: vera",
        "metatt-4d",
        "metatt-4d, plain",
        "metatt-4d, dense",
        "metatt-4d, merged",
    ]
    assert cases["metatt-4d, merged"]["num_params"] == 0
    assert cases["frozen model"]["step"] == cases["frozen model"]["forward"] == 1.0
    assert all(
        case["step_low"] <= case["step"] <= case["step_high"] and case["peak_mb"] == 1 for case in cases.values()
    )
    assert cases["peft: lora"]["num_params"] == 2 * 3 * 2 * 32 and cases["metatt-4d"]["num_params"] == 2 * 32 + 5 * 4
    assert cases["metatt-4d"]["file_bytes"] > 4 * 84 and cases["frozen model"]["file_bytes"] is None
    assert RowStore(tmp_path / "rows.jsonl").rows() == [json.loads(json.dumps(row))]


@pytest.mark.parametrize("model, targets", [("minilm", ("query", "key", "value")), ("timm:resnet18", "conv")])
def test_every_way_computes_the_same(model, targets, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    config = BenchConfig(
        model, methods=("lora",), peers=(), rank=2, targets=targets, batch=2, tokens=3, size=32, plain=True, dense=True
    )
    base, inputs = cases.build_model(config)
    outputs = {}
    for name in cases.case_names(config):
        case = cases.build_case(name, base, inputs, config)
        torch.manual_seed(0)
        for factor in case.learned:
            torch.nn.init.normal_(factor, 0, 0.1)
        outputs[name] = cases.first_output(case.model.eval()(**case.inputs))
    assert (outputs["lora"] - outputs[cases.FLOOR]).abs().max() > 1e-3
    for way in (cases.PLAIN, cases.DENSE):
        torch.testing.assert_close(outputs["lora" + way], outputs["lora"], rtol=1e-4, atol=1e-4)


def test_each_method_at_its_rank_on_a_well_known_model(monkeypatch):
    """Table 20 of MetaTT: a bench of roberta-base needs no weights, and prints the seconds of forward and backward."""
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    sizes = {**TINY, "num_hidden_layers": 2}
    monkeypatch.setattr(cases, "build_architecture", partial(cases.build_architecture, **sizes))
    monkeypatch.setattr(cases, "load_model", lambda *_, **__: pytest.fail("weights were asked for"))
    monkeypatch.setattr(memory, "peak_bytes", lambda config, name: 2**20)
    flags = "--model roberta-base --targets query value --methods lora vera metatt-4d --peers vera --rank 2"
    flags += " --batch 2 --tokens 3 --rounds 1 --no-clip-rank --no-keep-memory --ranks vera 5 metatt-4d 3"
    code, out, _ = metalora_command("bench", *flags.split(), "peft: vera", 4, "--json")
    rows = {row["case"]: row for row in json.loads(out)["results"]["cases"]}
    ranks = {"frozen model": None, "peft: vera": 4, "lora": 2, "vera": 5, "metatt-4d": 3}
    assert code == 0 and {name: row["rank"] for name, row in rows.items()} == ranks
    counts = {"frozen model": 0, "peft: vera": 4 * 20, "lora": 4 * 2 * 32, "vera": 4 * 21, "metatt-4d": 3 * 32 + 9 * 4}
    assert {name: row["num_params"] for name, row in rows.items()} == counts
    for row in rows.values():
        assert 0 < row["backward_seconds"] < row["step_seconds"] and row["forward_seconds"] > 0
    code, out, _ = metalora_command("bench", *flags.split(), "peft: vera", 4)
    printed = re.findall(r"\d\.\d{3} ±\d\.\d{3}, \d\.\d{4} s", out)
    assert code == 0 and len(printed) == 3 * len(rows) and "backward" in out


def test_scaling_sets_the_rank_itself():
    with pytest.raises(ValueError, match="--what scaling times every method at the same ranks and takes no --ranks"):
        run(BenchConfig(ranks={"lora": 4}), "scaling", None)


def test_the_dense_way_takes_one_delta_for_all(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    config = BenchConfig(methods=("metatt-4+1d",), peers=(), rank=2, batch=2, tokens=3, rounds=1, tasks=2, dense=True)
    with pytest.raises(ValueError, match="--dense takes one Delta W .* 'encoder.layer.0.attention.self.query' has one"):
        steps.time_cases(config)


@pytest.mark.parametrize(
    "more", [{"merged": True}, {"checkpointing": True}, {"dense": True, "dtype": "bfloat16"}], ids=str
)
def test_methods_whose_factors_differ_by_example(more, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    methods = ("lora", "metatt-4d") if "dense" in more else ("metatt-4+1d", "metalora-cp")
    stem = ConditionConfig(source="stem", stem="embeddings")
    config = BenchConfig(
        methods=methods, peers=(), condition=stem, rank=2, batch=2, tokens=3, layers=2, rounds=1, tasks=2, **more
    )
    cases = {row["case"]: row for row in steps.time_cases(config)}
    ways = {"merged": "metatt-4+1d, merged", "dense": "lora, dense"}
    assert {*methods, *(way for name, way in ways.items() if name in more)} < {*cases}
    assert all(row["step"] > 0 for row in cases.values())


def test_given_features_spare_the_pass_for_them(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    stages = ConditionConfig(source="stages")
    config = BenchConfig(
        methods=("lora", "metalora-cp"), condition=stages, peers=(), rank=2, batch=2, tokens=3, features_given=True
    )
    assert cases.case_names(config) == ["frozen model", "lora", "metalora-cp", "metalora-cp, features given"]
    base, inputs = cases.build_model(config)
    passes, outputs = [], []
    for name in cases.case_names(config)[2:]:
        case = cases.build_case(name, base, inputs, config)
        torch.manual_seed(0)
        randomise(adapter_of(case.model))
        forwards = []
        case.model.register_forward_hook(lambda *_, forwards=forwards: forwards.append(1))
        with torch.no_grad():
            outputs.append(cases.first_output(case.run(**case.inputs)))
        passes.append(len(forwards))
    assert passes == [2, 1]
    torch.testing.assert_close(*outputs)


def test_what_is_timed_for_tasks_is_what_the_row_says():
    with pytest.raises(ValueError, match="--what tasks has a batch and a model of its own and takes only rank, rounds"):
        run(BenchConfig(batch=3), "tasks", None)
    assert report.tasks_config(BenchConfig(rank=4, rounds=2)).batch == 64


def test_attaching_beside_peft(monkeypatch):
    pytest.importorskip("transformers"), pytest.importorskip("peft")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    config = BenchConfig(methods=("metatt-4d", "lotr"), rank=2, layers=2, rounds=1, keep_memory=False)
    cases = {row["case"]: row for row in run(config, "attach", None)["results"]["cases"]}
    expected = [name + how for name in config.methods for how in ("", ", loaded", ", in peft")]
    assert list(cases) == ["peft: lora", *expected] and cases["peft: lora"]["cost"] == 1
    with pytest.raises(ValueError, match="name one as a peer"):
        run(replace(config, peers=()), "attach", None)


def test_growth_over_every_axis(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encoder, "ENCODER", TINY)
    axes = {"rank": (1, 2), "layers": (1, 2), "targets": (1, 6), "tokens": (2, 3), "tasks": (1, 30)}
    monkeypatch.setattr(scaling, "AXES", axes)
    config = BenchConfig(
        methods=("metatt-4d",), peers=(), rank=2, batch=2, tokens=3, layers=2, rounds=1, keep_memory=False
    )
    row = run(config, "scaling", None)
    cases = {(case["axis"], case["value"], case["case"]): case for case in row["results"]["cases"]}
    assert {key[:2] for key in cases} == {(axis, value) for axis, values in axes.items() for value in values}
    train, head = cases["layers", 2, "metatt-4d"], 16 * 16 * 4 + 16 * 16 * 2
    assert train["predicted"] == pytest.approx(1 + 3 * 3 * 2 * (16 + 16) / (2 * head))  # Q, K, V of rank 2
    assert cases["tasks", 30, "metatt-4+1d"]["num_params"] - cases["tasks", 1, "metatt-4+1d"]["num_params"] == 29 * 4
    assert cases["targets", 6, "metatt-4d"]["num_params"] > cases["targets", 1, "metatt-4d"]["num_params"]
    plot(row, tmp_path / "new" / "growth.png")
    plot({"config": {"what": "tasks"}, "results": {"cases": [
        dict(case="a", cost=1.1, cost_low=1.0, cost_high=1.3)]}}, tmp_path / "tasks.png")  # fmt: skip
    assert (tmp_path / "new" / "growth.png").stat().st_size > 10_000 and (tmp_path / "tasks.png").stat().st_size > 2_000


def test_exponents_are_those_of_the_added_time():
    rows = [
        {
            "axis": "rank",
            "value": value,
            "case": case,
            "step_seconds": 3,
            "step": 1 + (0.01 * value**2 if case == "a" else 0),
        }
        for value in (2, 4, 8)
        for case in ("frozen model", "a", "b")
    ]
    assert scaling.fit_exponents(rows) == [
        {"axis": "rank", "case": "a", "exponent": pytest.approx(2)}
    ]  # b adds nothing


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    code = """
import resource
from metalora.bench.memory import keep_freed
keep_freed()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(run_fresh(code).stdout) < 1000  # of 16,384 pages


def test_peak_memory_is_that_of_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(memory.multiprocessing, "get_context", lambda method: {"spawn": SERVER}[method])
    config = BenchConfig(model="timm:resnet18", methods=("lora",), targets="conv", batch=2, size=32, rank=2)
    small, large = (memory.peak_bytes(replace(config, batch=batch), "lora") for batch in (1, 16))
    assert 0 < small < large


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(peers=("lor",)), "unknown tuner of PEFT 'lor'; did you mean 'lora'"),
        (dict(ranks={"metatt4d": 2}), "ranks names 'metatt4d', which is not timed; did you mean 'metatt-4d'"),
        (dict(methods=("metat-4d",)), "unknown method 'metat-4d'; did you mean 'metatt-4d'"),
    ],
)
def test_unknown_names(changes, message):
    with pytest.raises(ValueError, match=message):
        cases.check_names(replace(BenchConfig(), **changes))
