"""MetaLoRA's Table I: its shape, its stars and its runs."""

import copy
from dataclasses import replace

import pytest

from metalora_papers.comparison import load_comparison
from metalora_papers.config import TableConfig
from metalora_papers.metalora.table_one import TableOne

METHODS = {"original": 0.3, "lora": 0.5, "multi-lora": 0.52, "moe-lora": 0.51, "metalora-cp": 0.7, "metalora-tr": 0.53}


def made_up(method, seed, backbone, score):
    results = {f"k{count}": {"trained_mean": score + count / 1000} for count in (5, 10)}
    config = {"method": method, "adapter": None, "backbone": {"architecture": backbone}}
    key = f"{method}-{seed}-{backbone}"
    return {"suite": "attributes", "seed": seed, "key": key, "config": config, "results": results | {"num_params": 9}}


NOISE = {0: 0.0, 1: 0.01, 2: 0.03}  # of a seed
SHARE = {"metalora-cp": 1.2}  # of the noise that a method has: no two differences of CP are equal


def table_rows(seeds=(0, 1, 2)):
    return [
        made_up(method, seed, backbone, score + NOISE[seed] * _share_of_noise(method, seed))
        for seed in seeds
        for backbone in ("resnet", "mixer")
        for method, score in METHODS.items()
    ]


def _share_of_noise(method, seed):
    return (-1) ** seed if method == "metalora-tr" else SHARE.get(method, 1)


def test_the_table_has_the_shape_of_the_paper_and_stars_where_the_paired_test_is_significant():
    report = TableOne("metalora-1", TableConfig()).report(table_rows())
    table = report.tables[0]
    assert table.columns == ("method", "ResNet, K=5", "ResNet, K=10", "MLP-Mixer, K=5", "MLP-Mixer, K=10")
    lines = {line[0]: line[1:] for line in table.cells}
    assert list(lines)[:5] == ["Original", "LoRA", "Multi-LoRA", "Meta-LoRA CP", "Meta-LoRA TR"]
    assert lines["Original"] == ("31.83", "32.33", "31.83", "32.33")
    assert lines["Meta-LoRA CP"] == ("72.10*", "72.60*", "72.10*", "72.60*")
    assert lines["Meta-LoRA TR"] == ("54.17", "54.67", "54.17", "54.67")  # p = 0.53
    assert [test.baseline for test in report.comparisons] == ["multi-lora"] * 8


def test_two_seeds_have_no_stars():
    report = TableOne("metalora-1", TableConfig()).report(table_rows(seeds=(0, 1)))
    assert not report.comparisons and "*" not in str(report.tables[0].cells)


def test_it_runs_both_networks_with_whole_seeds_first():
    settings = TableConfig(seeds=(3, 1), methods=("original", "lora"), lr_grid=(1e-3, 2e-3))
    comparison = load_comparison("metalora-1", settings)
    rates = {("mixer", "lora"): 7e-3}
    runs = [(run.seed, run.backbone.architecture, run.method, run.train.lr) for run in comparison.runs(rates)]
    assert runs == [
        (seed, backbone, method, 7e-3 if (backbone, method) == ("mixer", "lora") else 5e-3)
        for seed in (3, 1)
        for backbone in ("resnet", "mixer")
        for method in ("original", "lora")
    ]
    assert len(comparison.choosing_runs()) == 4  # two networks, two rates, one trained method


def test_a_network_without_rows_is_an_error():
    rows = [row for row in _stored() if row["config"]["backbone"]["architecture"] == "resnet"]
    with pytest.raises(ValueError, match="backbone 'mixer'"):
        TableOne("metalora-1", TableConfig()).rows_of(rows)


def _stored():
    rows = copy.deepcopy(table_rows())
    for row in rows:
        row["config"] |= {"data": "mnist-5k", "split": "test", "episodes": {"trained": list(TableConfig().trained)}}
        row["config"]["train"] = {"lr": 5e-3}
    return rows


def test_the_rates_of_a_network_are_its_own():
    rows = [row for row in _stored() if row["config"]["method"] == "lora"]
    for row in rows:
        row["config"]["split"] = "val"
        row["config"]["train"]["lr"] = 1e-3 if row["config"]["backbone"]["architecture"] == "mixer" else 2e-3
    found = TableOne("metalora-1", replace(TableConfig(), seeds=(0,))).chosen_rates(rows)
    assert found == {("resnet", "lora"): 2e-3, ("mixer", "lora"): 1e-3}


def test_a_method_of_two_seeds_has_no_star_in_a_table_of_three():
    """Its test is over the seeds that it shares with the baseline."""
    rows = [row for row in table_rows() if (row["config"]["method"], row["seed"]) != ("metalora-cp", 2)]
    with pytest.warns(UserWarning, match="seed"):
        report = TableOne("metalora-1", TableConfig()).report(rows)
    lines = {line[0]: line[1:] for line in report.tables[0].cells}
    tests = [test for test in report.comparisons if test.treatment == "metalora-cp"]
    assert all(test.seeds == (0, 1) and test.p_value < 0.05 for test in tests)
    assert lines["Meta-LoRA CP"] == ("71.10", "71.60", "71.10", "71.60")
