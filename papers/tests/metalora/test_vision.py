"""Runs from data to row, on a set so small that a run takes a second; and the guards around them."""

import copy
import dataclasses
import functools
import itertools
import warnings
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch

import metalora
from metalora.adapters.targets import find_targets
from metalora.bench.store import RowStore
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora.cost import match_parameters
from metalora.executors.local import LocalProcesses
from metalora_papers import jobs
from metalora_papers.config import BackboneConfig, DomainConfig, EpisodeConfig, RunConfig
from metalora_papers.execution import execute
from metalora_papers.jobs import key_of
from metalora_papers.metalora.backbones import buffers_hash, build
from metalora_papers.registry import open_suite
from metalora_papers.scheduler import run_all, run_one

pytest.importorskip("timm")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.filterwarnings("ignore:Only one sample available", "ignore:.*the condition is ignored")

STATIC = AdapterConfig("lora", 2, clip_rank=True, condition=ConditionConfig(scope="constant"))
TASKS = ("class", "hue", "scale", "class (unseen)")
CELLS = {f"{d}_domain_{c}_class" for d in ("seen", "unseen") for c in ("seen", "unseen")}
METRICS = {
    "attributes": {"k5", "k10", "k20", "lda", "stats_lda", "fused", "nested"},
    "cue": {"clean", "own", "nested"},
}
CONTROLS = {
    "attributes": {"other_support", "mean_condition", "selected", "task_share", "own_condition", "other_condition"},
    "cue": {"own_condition", "domain_mean_condition", "global_mean_condition", "other_condition", "domain_share"},
}


def tiny(suite, method):
    """A run of seconds: three steps for the backbone, two for the adapter, one test episode or two domains."""
    scope = "support" if suite == "attributes" else "sample"
    generated = AdapterConfig("metalora-cp", 2, clip_rank=True, condition=ConditionConfig(scope=scope, hidden=4))
    return RunConfig(
        suite=suite,
        data="digits",
        method=method,
        adapter={"original": None, "lora": STATIC, "metalora-cp": generated}[method],
        backbone=BackboneConfig(steps=3, batch=16),
        train=TrainConfig(steps=2),
        episodes=EpisodeConfig(
            trained=("class", "hue"), held_out=("scale",), support=12, query=8,
            test_support=36, test_query=12, test_episodes=1,
        ),
        domains=DomainConfig(batch=8, domains_per_batch=4, test_domains=2, per_class=10, queries=10),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Backbones of this file only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@functools.cache
def row_of(suite, method):
    return execute(tiny(suite, method))


def numbers(results, skipped=("num_params", "loss", "condition_used")):
    """Every accuracy and share in results."""
    for name, value in results.items():
        if isinstance(value, dict):
            yield from numbers(value)
        elif name not in skipped and name != "nested":
            yield value


RUNS = [(suite, method) for suite in METRICS for method in ("original", "lora", "metalora-cp")]


@pytest.mark.parametrize("suite, method", RUNS)
def test_a_run_gives_a_row_with_every_metric(suite, method):
    row, adapter, _ = row_of(suite, method)
    config, results = tiny(suite, method), row["results"]
    assert set(row) == {"key", "suite", "config", "seed", "commit", "environment", "time", "results"}
    assert (row["suite"], row["seed"], row["key"]) == (suite, 0, key_of(config))
    expected = METRICS[suite] | {"num_params", "loss"}
    if method == "metalora-cp":
        expected |= CONTROLS[suite] | {"condition_used"}
    assert set(results) == expected
    assert all(0 <= value <= 1 for value in numbers(results))
    assert (adapter is None) == (method == "original")
    assert results["num_params"] == (adapter.num_params() if adapter else 0)
    assert (results["loss"] is None) == (method == "original")
    if suite == "attributes":
        assert set(results["k5"]["per_task"]) == set(TASKS)
        assert results["k5"]["unseen_class"] == results["k5"]["per_task"]["class (unseen)"]
        trained = [results["k5"]["per_task"][task] for task in TASKS[:2]]
        assert results["k5"]["trained_mean"] == pytest.approx(sum(trained) / 2)
        counts = next(c for c in results["nested"] if c["metric"] == "k5.trained_mean")
        assert sum(counts["right"]) / counts["queries"] == pytest.approx(sum(trained) / 2)
    else:
        assert set(results["clean"]) == {"k5", "k10", "k20", "dino", "nearest_mean", "probe"} == set(results["own"])
        assert all(set(by_cell) == CELLS for by_cell in results["clean"].values())
        for bank, cell in itertools.product(("clean", "own"), CELLS):
            counts = next(c for c in results["nested"] if c["metric"] == f"{bank}.k5.{cell}")
            assert results[bank]["k5"][cell] == pytest.approx(sum(counts["right"]) / counts["queries"] / 2)


@pytest.mark.parametrize("suite, method", [run for run in RUNS if run[1] == "metalora-cp"])
def test_the_same_config_gives_the_same_row(suite, method):
    torch.rand(7)
    again, adapter, _ = execute(tiny(suite, method))
    row, first, _ = row_of(suite, method)
    assert again["results"] == row["results"] and again["key"] == row["key"]
    assert all(torch.equal(a, b) for a, b in zip(adapter.parameters(), first.parameters(), strict=True))
    other_config = dataclasses.replace(tiny(suite, method), seed=1)
    other_suite = open_suite(other_config)
    other_suite.evaluate = lambda adapter: {}  # the training alone is compared
    other, *_ = execute(other_config, suite=other_suite)
    assert other["results"]["loss"] != row["results"]["loss"] and other["key"] != row["key"]


@pytest.mark.parametrize("suite", METRICS)
def test_every_weight_of_the_backbone_is_trained(suite):
    run = dataclasses.replace(tiny(suite, "original"), method="every weight", full=True)
    frozen, opened = open_suite(run), open_suite(run)
    row, adapter, extra = execute(run, suite=opened)
    before, after = frozen.model.state_dict(), opened.model.state_dict()
    assert adapter is None and extra is None and row["results"]["loss"] is not None
    assert row["results"]["num_params"] == sum(parameter.numel() for parameter in frozen.model.parameters())
    assert all(not torch.equal(before[name], after[name]) for name, _ in frozen.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name, _ in frozen.model.named_buffers())
    if suite == "attributes":  # the baseline on the statistics of the frozen backbone is that of every row
        assert row["results"]["stats_lda"] == row_of(suite, "original")[0]["results"]["stats_lda"]


def test_every_method_is_judged_on_the_same_episodes():
    """What does not depend on the adapter is equal, number by number: the statistics of the frozen backbone."""
    scores = [row_of("attributes", method)[0]["results"]["stats_lda"] for method in ("original", "lora", "metalora-cp")]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize("suite", METRICS)
def test_val_and_test_share_no_image(suite):
    """Hyper-parameters are chosen on images that no test score has seen."""
    taken = {}
    for split in ("val", "test"):
        experiment = open_suite(dataclasses.replace(tiny(suite, "original"), split=split))
        if suite == "attributes":
            episodes = [experiment.test_episode(task, 0) for task in experiment.tasks]
            taken[split] = {int(i) for e in episodes for ids in (e.support_ids, e.query_ids) for i in ids}
        else:
            config = dataclasses.replace(experiment.config, per_class=2, queries=4)
            experiment.config = config
            sets = [one for kind in ("seen_domain", "unseen_domain") for one in experiment._sets(kind, "seen_class")]
            taken[split] = {int(i) for one in sets for ids in (one.bank_ids, one.query_ids) for i in ids}
    assert taken["val"] and taken["test"] and not taken["val"] & taken["test"]


# ---- many runs -----------------------------------------------------------------------------------------------------
@pytest.fixture
def executed(monkeypatch):
    """The configs that are executed, by the real `execute` on cached rows' settings."""
    calls, real = [], jobs.execute

    def counted(config, **options):
        calls.append(config.method)
        return real(config, **options)

    monkeypatch.setattr(jobs, "execute", counted)
    return calls


WANTED = [tiny("attributes", method) for method in ("metalora-cp", "original")]


def test_run_all_runs_what_is_missing_and_no_more(executed, tmp_path):
    done = []
    rows = run_all(WANTED[1:], tmp_path, on_done=lambda config: done.append(config.method))
    assert executed == ["original"] and done == ["original"]
    rows = run_all(WANTED, tmp_path, on_done=lambda config: done.append(config.method))
    assert executed == ["original", "metalora-cp"] and done[1:] == ["original", "metalora-cp"]
    assert [row["key"] for row in rows] == [key_of(config) for config in WANTED]
    assert [row["results"] for row in rows] == [row_of("attributes", c.method)[0]["results"] for c in WANTED]
    assert run_all(WANTED, tmp_path) == rows and len(executed) == 2
    assert run_one(WANTED[0], tmp_path) == rows[0] and len(executed) == 2
    assert not list((tmp_path / "checkpoints").glob("*"))
    saved = tmp_path / "adapters" / f"{key_of(WANTED[0])}.safetensors"
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]
    suite = open_suite(WANTED[0])  # the adapter that was saved scores as its row
    found = suite.evaluate(metalora.load(suite.model, saved))
    assert found == {name: rows[0]["results"][name] for name in found}


def test_an_interrupted_table_keeps_its_rows_and_gives_its_claim_back(executed, tmp_path, monkeypatch):
    configs = [tiny("cue", "original"), tiny("cue", "lora")]

    def stop(step, loss):
        raise KeyboardInterrupt

    run_all(configs[:1], tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_one(configs[1], tmp_path, on_step=stop)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    rows = run_all(configs, tmp_path)
    assert executed == ["original", "lora", "lora"]
    assert rows[1]["results"] == row_of("cue", "lora")[0]["results"]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_row_from_before_a_field_was_there_is_still_that_of_its_run(executed, tmp_path):
    old = copy.deepcopy(row_of("attributes", "original")[0])
    del old["config"]["train"]["accumulate"]
    store = RowStore(tmp_path / "rows.jsonl")
    store.append({**old, "key": "of-another-time"})
    store.append({**old, "key": "gone", "config": {**old["config"], "no_such_field": 1}})
    (row,) = run_all(WANTED[1:], tmp_path)
    assert row["key"] == "of-another-time" == run_one(WANTED[1], tmp_path)["key"] and not executed


def test_a_whole_number_where_a_file_has_a_fraction(executed, tmp_path):
    """A run made in Python may hold 1 where its row gives 1.0: it is done all the same, and not waited for."""
    whole = dataclasses.replace(WANTED[1], train=dataclasses.replace(WANTED[1].train, clip=1))
    (row,) = run_all([whole], tmp_path)
    assert row["key"] == key_of(whole) and run_all([whole], tmp_path) == [row] and executed == ["original"]


@pytest.mark.slow
def test_two_processes_share_a_table(tmp_path):
    configs = [tiny("attributes", method) for method in ("original", "lora", "metalora-cp")]
    with closing(LocalProcesses(2)) as executor:
        rows = run_all(configs, tmp_path, executor=executor)
    expected = [row_of("attributes", config.method)[0]["results"] for config in configs]
    assert [row["results"] for row in rows] == expected


# ---- equal budgets -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [1, 5_000, 20_001])
@pytest.mark.parametrize("method", ["lora", "multi-lora", "moe-lora", "conv-lora"])
def test_the_matched_rank_is_the_smallest_that_reaches_the_budget(method, budget):
    model = build("resnet", 28, 6)
    targets = find_targets(model)
    config = AdapterConfig(method, clip_rank=True, condition=ConditionConfig(scope="constant"))
    step = config.experts if method == "moe-lora" else 1
    rank = match_parameters(model, config, budget, at_least=True).rank

    def count(rank):
        return metalora.count_params(dataclasses.replace(config, rank=rank), targets)

    assert rank % step == 0 and count(rank) >= budget
    assert rank == step or count(rank - step) < budget
    assert metalora.attach(model, dataclasses.replace(config, rank=rank)).num_params() == count(rank)


def test_a_budget_out_of_reach_is_refused():
    config = AdapterConfig("lora", clip_rank=True, condition=ConditionConfig(scope="constant"))
    with pytest.raises(ValueError, match="'lora' cannot reach 100000000 parameters"):
        match_parameters(build("resnet", 28, 6), config, 10**8, at_least=True)


# ---- guards --------------------------------------------------------------------------------------------------------
class StubSuite:
    """A suite that trains on one random batch and scores what it is told to."""

    averaged_losses, tokenizer, example = 50, None, None

    def __init__(self, model, results, damage):
        self.model = self.trained_model = model
        self.results, self.damage = results, damage

    def prepare(self, adapter, *, training):
        adapter.calibrate([torch.rand(8, 3, 32, 32)])

    def train_step(self, adapter, step):
        images = torch.rand(4, 3, 32, 32)
        self.damage(self.model)
        return self.model(images, condition=adapter.condition(images, torch.arange(4) % 2)).square().mean()

    def after_step(self, adapter, step, loss):
        pass

    def evaluate(self, adapter):
        return dict(self.results)

    def training_results(self, adapter):
        return {}

    def extra_modules(self):
        return None


def stubbed(results=None, damage=lambda model: None):
    return StubSuite(build("resnet", 32, 6).eval(), results or {}, damage)


SCORES = {
    "ignored": ({"own_condition": 0.5, "other_condition": 0.5}, False),
    "hardly used": ({"own_condition": 0.51, "other_condition": 0.5}, False),
    "worse than another's": ({"own_condition": 0.3, "other_condition": 0.6}, False),
    "used": ({"own_condition": 0.9, "other_condition": 0.5}, True),
    "not measured": ({"k5": 0.5}, None),
}


@pytest.mark.filterwarnings("default:.*the condition is ignored")
@pytest.mark.parametrize("scores, used", SCORES.values(), ids=SCORES)
def test_a_condition_that_changes_nothing_is_warned_of(scores, used):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row, *_ = execute(tiny("attributes", "metalora-cp"), suite=stubbed(scores))
    messages = [str(one.message) for one in caught if "condition is ignored" in str(one.message)]
    assert len(messages) == (used is False)
    assert row["results"].get("condition_used") is used
    if messages:
        assert messages[0].startswith("metalora-cp:") and f"{scores['own_condition']:.3f}" in messages[0]


@pytest.mark.filterwarnings("default:.*the condition is ignored")
def test_an_adapter_that_was_not_trained_ignores_its_condition():
    config = dataclasses.replace(tiny("attributes", "metalora-cp"), train=TrainConfig(steps=0))
    with pytest.warns(UserWarning, match="metalora-cp: the condition is ignored"):
        row, *_ = execute(config)
    assert row["results"]["own_condition"] == row["results"]["other_condition"]
    assert row["results"]["k5"] == row_of("attributes", "original")[0]["results"]["k5"]


def test_a_changed_buffer_of_the_backbone_stops_the_run():
    def damage(model):
        model.bn1.running_mean += 1

    with pytest.raises(RuntimeError, match="changed a buffer of the frozen backbone"):
        execute(tiny("attributes", "metalora-cp"), suite=stubbed(damage=damage))


def test_a_batchnorm_in_training_mode_does_not_update():
    """A caller's model.train() is harmless: every forward of an adapted model holds its norms still."""
    suite = stubbed(damage=lambda model: model.train())
    before = buffers_hash(suite.model)
    execute(tiny("attributes", "metalora-cp"), suite=suite)
    metalora.detach(suite.model)
    assert buffers_hash(suite.model) == before


def test_steps_are_reported():
    seen = []
    execute(tiny("attributes", "metalora-cp"), suite=stubbed(), on_step=lambda *step: seen.append(step))
    assert [step for step, _ in seen] == [0, 1]


def test_the_row_says_what_was_run():
    config = SimpleNamespace(**execute(tiny("attributes", "metalora-cp"), suite=stubbed())[0]["config"])
    assert config.method == "metalora-cp" and config.adapter["rank"] == 2 and config.train["steps"] == 2


def test_a_backbone_belongs_to_the_images_it_was_trained_on(tmp_path):
    from PIL import Image

    states = []
    for shade, root in ((60, tmp_path / "a"), (200, tmp_path / "b")):
        for k in range(8):
            (root / "set" / str(k)).mkdir(parents=True)
            for i in range(6):
                Image.new("L", (28, 28), shade + k + i).save(root / "set" / str(k) / f"{i}.png")
        config = dataclasses.replace(tiny("attributes", "original"), data="folder:set", data_root=str(root))
        states.append(open_suite(config).model.state_dict())
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


# ---- settings that cannot work are refused before a backbone is trained --------------------------------------------
BAD_SETTINGS = {
    "an unknown method": {"adapter": AdapterConfig("metalora-pc")},
    "every weight beside an adapter": {"full": True},
    "a pre-trained model on a suite of domains": {"suite": "cue", "model": "timm:resnet18"},
}


@pytest.mark.parametrize("changes", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_setting_that_cannot_work_is_refused_first(changes, monkeypatch):
    from metalora_papers.metalora import vision as runs

    def late(*_, **__):
        raise RuntimeError("a backbone was trained or loaded first")

    monkeypatch.setattr(runs, "pretrained", late)
    monkeypatch.setattr(runs, "load_model", late)
    with pytest.raises(ValueError):
        execute(dataclasses.replace(tiny("attributes", "metalora-cp"), **changes))
