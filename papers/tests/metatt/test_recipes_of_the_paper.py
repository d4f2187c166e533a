"""The recipes of the MetaTT paper: their numbers against the printed tables, their sizes on the real architectures."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from metalora.config import to_dict
from metalora.cost import summarise
from metalora.ranks.schedule import ranks_by_step
from metalora.zoo import load_model
from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.recipes import recipe, recipes, seeded
from metalora_papers.registry import load_run

pytest.importorskip("transformers")
NAMES = list(recipes())
# (architecture, method, rank, tasks) -> trained numbers, from the closed forms; beside it what the paper prints
COUNTS = {
    ("roberta-base", "metatt-4d", 8, 1): 13_184,  # 13k
    ("roberta-base", "metatt-4d", 24, 1): 44_928,  # 45k
    ("roberta-base", "metatt-4d", 64, 1): 155_648,  # 156k
    ("roberta-large", "metatt-4d", 8, 1): 18_048,  # 18.0k
    ("roberta-large", "metatt-4d", 16, 1): 39_424,  # 39k
    ("roberta-large", "metatt-4d", 32, 1): 92_160,  # 92k
    ("roberta-base", "metatt-5d", 16, 1): 19_968,  # 20k
    ("roberta-base", "metatt-5d", 64, 1): 159_744,
    ("roberta-large", "metatt-5d", 32, 1): 77_824,
    ("roberta-large", "metatt-5d", 64, 1): 241_664,
    ("roberta-base", "metatt-4+1d", 8, 3): 13_376,  # 13.4k
    ("roberta-large", "metatt-4+1d", 8, 3): 18_240,  # 18.2k
    ("roberta-base", "metatt-4+1d", 8, 4): 13_440,  # 13.5k
    ("roberta-large", "metatt-4+1d", 8, 4): 18_304,  # 18.3k
    ("roberta-base", "lora", 8, 1): 294_912,  # 295k
    ("roberta-large", "lora", 8, 1): 786_432,  # 786k
    ("llama-2-7b", "lora", 8, 1): 4_194_304,  # 41.9e5
    ("llama-2-7b", "lora", 16, 1): 8_388_608,  # 83.9e5
    ("llama-2-7b", "metatt-4d", 16, 1): 139_776,  # 1.40e5
    ("llama-2-7b", "metatt-4d", 20, 1): 177_440,  # 47 times fewer than LoRA of rank 16
    ("llama-2-7b", "metatt-4d", 256, 1): 4_325_376,  # 43.2e5
    ("llama-2-13b", "lora", 8, 1): 6_553_600,  # 65.5e5
    ("llama-2-13b", "lora", 32, 1): 26_214_400,  # 262.1e5
    ("llama-2-13b", "metatt-4d", 16, 1): 174_592,  # 1.75e5
    ("llama-2-13b", "metatt-4d", 64, 1): 827_392,  # 8.3e5
}
# name -> (alpha, learning rate, batch), read off Tables 5, 6, 14 and 17 by hand
CELLS = {
    "table2-roberta-base-metatt-4d-r8-qqp": (4, 1e-3, 16),
    "table2-roberta-base-metatt-4d-r24-sst2": (4, 5e-4, 32),
    "table2-roberta-base-metatt-4d-r64-rte": (0.5, 5e-4, 8),
    "table2-roberta-large-metatt-4d-r16-stsb": (0.5, 1e-3, 32),
    "table2-roberta-large-metatt-4d-r32-cola": (4, 5e-4, 32),
    "table2-roberta-base-metatt-5d-r16-mnli": (0.5, 1e-3, 16),
    "table2-roberta-base-metatt-5d-r64-rte": (0.5, 5e-4, 32),
    "table2-roberta-large-metatt-5d-r32-mrpc": (0.5, 5e-4, 32),
    "table2-roberta-large-metatt-5d-r64-qnli": (0.5, 5e-4, 16),
    "table14-roberta-large-lora-cola": (128, 2e-4, 16),
    "table17-roberta-base-lora-mrpc": (8, 2e-4, 8),
    "table3-roberta-base-metatt-4+1d": (2, 5e-4, 16),
}


@cache
def planned(architecture, method, rank, targets, init, tasks):
    adapter = next(
        one.run.adapter
        for one in recipes().values()
        if (one.architecture, *sizes(one.run.adapter)) == (architecture, method, rank, targets, init, tasks)
    )
    return summarise(model(architecture), adapter)


@cache
def model(architecture):
    return load_model(architecture, weights=False)


def sizes(adapter):
    return adapter.method, adapter.rank, adapter.targets, str(adapter.init), adapter.tasks


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run_that_its_architecture_takes(name, tmp_path):
    one = recipe(name)
    (tmp_path / "run.yaml").write_text(one.yaml())
    assert load_run(tmp_path / "run.yaml") == one.run
    (tmp_path / "run.yaml").write_text(one.yaml(seed=7))
    assert load_run(tmp_path / "run.yaml") == seeded(one.run, 7) != one.run
    found = planned(one.architecture, *sizes(one.run.adapter))
    layers = {"roberta-base": 12, "roberta-large": 24, "llama-2-7b": 32, "llama-2-13b": 40}[one.architecture]
    assert found.targets == 2 * layers
    adapter = one.run.adapter
    expected = COUNTS.get((one.architecture, adapter.method, adapter.rank, adapter.tasks))
    assert expected is None or found.parameters == expected
    if one.run.train.rank_schedule:
        assert ranks_by_step(one.run.train.rank_schedule, adapter.rank)


def test_every_published_count_has_a_recipe():
    made = {(one.architecture, one.run.adapter.method, one.run.adapter.rank, one.run.adapter.tasks)
            for one in recipes().values()}  # fmt: skip
    assert set(COUNTS) <= made


@pytest.mark.parametrize("name, cell", CELLS.items(), ids=CELLS)
def test_the_numbers_are_the_printed_ones(name, cell):
    run = recipe(name).run
    assert (run.adapter.alpha, run.train.lr, run.batch) == cell


def test_how_many_there_are():
    tables = Counter(name.partition("-")[0] for name in NAMES)
    assert tables == {
        "table1": 8, "table2": 72, "table3": 6, "table13": 6, "table4": 16, "table14": 6, "table17": 6, "figure13": 4,
    }  # fmt: skip


def test_what_all_runs_on_glue_share():
    for one in recipes().values():
        run = one.run
        assert run.train.weight_decay == 0 and run.train.warmup == 0.06 and run.train.schedule == "linear"
        if isinstance(run, CausalRunConfig):
            assert run.batch * run.train.accumulate == 32 and run.adapter.seed == run.seed
            continue
        assert run.max_length == 256 and run.classifier == "frozen" and run.seed == one.seeds[0]
        assert run.train.clip == (3.0 if len(run.tasks) > 1 else 1.0)


def test_epochs_are_those_of_the_data_as_it_is_parted():
    """CoLA: 8551 texts, 855 of them for validation, 962 batches of 8; 170420 questions, 1704 of them, 5272 of 32."""
    assert recipe("table2-roberta-base-metatt-4d-r8-cola").run.train.steps == 20 * 962
    assert recipe("table1-llama-2-7b-metatt-4d-r16").run.train.steps == 2 * 5272
    assert recipe("figure13-llama-2-7b-lora-r16").run.train.steps == 15000 // 32
    swept = recipe("table4-roberta-base-dmrg-mrpc").run
    assert swept.train.rank_schedule.steps == (5 * 412, 10 * 412, 15 * 412) and swept.train.steps == 20 * 412


def test_ranks_fall_as_the_paper_says():
    """r(i) = 20 + 20 (1 - (i/5)^2) = 39.2, 36.8, 32.8, 27.2, 20."""
    run = recipe("figure13-llama-2-7b-metatt-4d-dmrg").run
    assert list(ranks_by_step(run.train.rank_schedule, run.adapter.rank).values()) == [39, 37, 33, 27, 20]
    run = recipe("table4-roberta-large-dmrg-rte").run
    assert list(ranks_by_step(run.train.rank_schedule, run.adapter.rank).values()) == [8, 6, 4]


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'table2-roberta-base-metatt-4d-r8-cola'?"):
        recipe("table2-roberta-base-metatt-4d-r9-cola")


def test_the_command_prints_a_file_that_loads(tmp_path, monkeypatch, capsys):
    import sys

    from metalora_papers.cli import main

    for arguments in (["recipe", "table3-roberta-base-metatt-4+1d", "--seed", "42"], ["recipe", "--json"]):
        monkeypatch.setattr(sys, "argv", ["metalora-papers", *arguments])
        main()
        out = capsys.readouterr().out
        if "--json" in arguments:
            assert out.count('"name"') == len(NAMES)
        else:
            (tmp_path / "run.yaml").write_text(out)
            assert load_run(tmp_path / "run.yaml").seed == 42


def test_the_run_in_the_documentation_loads(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "metatt.md").read_text()
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    run = load_run(tmp_path / "run.yaml")
    assert isinstance(run, CausalRunConfig) and run.adapter.method == "metatt-4d"
    assert to_dict(run.adapter.condition)["scope"] == "constant"
