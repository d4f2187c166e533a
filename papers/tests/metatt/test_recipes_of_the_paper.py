"""The recipes of the MetaTT paper: their numbers against the printed tables, their sizes on the real architectures."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from metalora.config import to_dict
from metalora.cost import summarise
from metalora.ranks.budget import budget
from metalora.ranks.schedule import ranks_by_step
from metalora.zoo import load_model
from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.recipes import recipes, seeded
from metalora_papers.recipes import all_recipes, recipe
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
    ("roberta-base", "vera", 1024, 1): 43_008,  # 43k
    ("roberta-large", "vera", 256, 1): 61_440,  # 61k
    ("roberta-base", "loretta-adp", 5, 1): 57_408,  # 57k
    ("roberta-large", "loretta-adp", 5, 1): 132_864,  # 133k
    ("roberta-base", "loretta-rep", (5, 5, 5, 8, 5, 5, 5), 1): 27_840,  # not printed
    ("roberta-base", "lorta", 8, 1): 6_880,  # 6.9k
    ("roberta-base", "lorta", 64, 1): 55_040,  # 55k
    ("roberta-large", "lorta", 8, 1): 9_056,  # 9.1k
    ("roberta-base", "lotr", 32, 1): 73_728,  # 74k
    ("roberta-base", "lotr", 40, 1): 99_840,  # 100k
    ("roberta-base", "lotr", 80, 1): 276_480,  # 276k
    ("roberta-base", "lotr", 88, 1): 321_024,  # 321k
    ("roberta-large", "lotr", 64, 1): 327_680,  # 328k
    ("roberta-base", "mtl-lora", 4, 3): 296_280,  # 296k
    ("roberta-base", "mtl-lora", 4, 4): 296_736,  # 296k, which is the count of three tasks
    ("roberta-large", "mtl-lora", 4, 3): 789_168,  # 789k
    # the paper counts an unused row of task embeddings more: 64 numbers at each of 24 or 48 matrices
    ("roberta-base", "moe-lora-task", 8, 3): 305_664,  # 307k = 305,664 + 1,536
    ("roberta-base", "moe-lora-task", 8, 4): 307_200,  # 309k
    ("roberta-large", "moe-lora-task", 8, 3): 807_936,  # 811k = 807,936 + 3,072
    ("roberta-large", "moe-lora-task", 8, 4): 811_008,  # 814k
    ("roberta-base", "lora", 8, 1): 294_912,  # 295k
    ("roberta-large", "lora", 8, 1): 786_432,  # 786k
    ("llama-2-7b", "lora", 8, 1): 4_194_304,  # 41.9e5
    ("llama-2-7b", "lora", 16, 1): 8_388_608,  # 83.9e5
    ("llama-2-7b", "vera", 1024, 1): 327_680,  # 3.27e5
    ("llama-2-7b", "lotr", 16, 1): 147_456,  # 1.47e5
    ("llama-2-13b", "vera", 256, 1): 430_080,  # 4.3e5
    ("llama-2-13b", "lotr", 64, 1): 983_040,  # 9.83e5
    ("llama-2-7b", "metatt-4d", 16, 1): 139_776,  # 1.40e5
    ("llama-2-7b", "metatt-4d", 20, 1): 177_440,  # 47 times fewer than LoRA of rank 16
    ("llama-2-7b", "metatt-4d", 256, 1): 4_325_376,  # 43.2e5
    ("llama-2-13b", "lora", 8, 1): 6_553_600,  # 65.5e5
    ("llama-2-13b", "lora", 32, 1): 26_214_400,  # 262.1e5
    ("llama-2-13b", "metatt-4d", 16, 1): 174_592,  # 1.75e5
    ("llama-2-13b", "metatt-4d", 64, 1): 827_392,  # 8.3e5
}


@cache
def planned(architecture, method, rank, targets, init, tasks):
    wanted = (architecture, method, rank, targets, init, tasks)
    adapter = next(adapter for name, adapter in adapters() if (name, *sizes(adapter)) == wanted)
    return summarise(model(architecture), adapter)


@cache
def model(architecture):
    return load_model(architecture, weights=False)


def sizes(adapter):
    return adapter.method, adapter.rank, adapter.targets, str(adapter.init), adapter.tasks


def adapters():
    """(architecture, adapter) of every recipe; full fine-tuning has none."""
    return [(entry.architecture, entry.run.adapter) for entry in recipes().values() if entry.run.adapter]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_run_that_its_architecture_takes(name, tmp_path):
    one = recipe(name)
    (tmp_path / "run.yaml").write_text(one.yaml())
    assert load_run(tmp_path / "run.yaml") == one.run
    (tmp_path / "run.yaml").write_text(one.yaml(seed=7))
    assert load_run(tmp_path / "run.yaml") == seeded(one.run, 7) != one.run
    adapter = one.run.adapter
    if adapter is None:
        assert one.run.full
        return
    found = planned(one.architecture, *sizes(adapter))
    layers = {"roberta-base": 12, "roberta-large": 24, "llama-2-7b": 32, "llama-2-13b": 40}[one.architecture]
    assert found.targets == (4 if adapter.method == "lorta" else 2) * layers
    expected = COUNTS.get((one.architecture, adapter.method, adapter.rank, adapter.tasks))
    assert expected is None or found.parameters == expected
    if one.run.train.rank_schedule:
        assert ranks_by_step(one.run.train.rank_schedule, adapter.rank)


def test_every_published_count_has_a_recipe():
    made = {(name, adapter.method, adapter.rank, adapter.tasks) for name, adapter in adapters()}
    assert set(COUNTS) <= made


def test_how_many_there_are():
    tables = Counter(name.partition("-")[0] for name in NAMES)
    # Table 2: eight tasks in 25 rows, but LoRETTA_adp has no result on STS-B; Table 9: two tasks without a result
    assert tables == {
        "table1": 12, "table2": 25 * 8 - 2, "table3": 10, "table9": 6, "table13": 10, "table4": 16, "table14": 6,
        "table17": 12, "figure13": 5,
    }  # fmt: skip


def test_what_all_runs_on_glue_share():
    for one in recipes().values():
        run = one.run
        assert run.train.warmup == 0.06 and run.train.schedule == "linear"
        assert run.train.weight_decay == (0.01 if run.method.startswith("loretta") else 0)
        if isinstance(run, CausalRunConfig):
            assert run.batch * run.train.accumulate == 32 and run.adapter.seed == run.seed
            assert run.evaluate_every == (84 if one.name.startswith("figure13") else 0)
            continue
        assert run.max_length == 256 and run.seed == one.seeds[0]
        assert run.classifier == ("trained" if run.full else "frozen") and run.head == "roberta"
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


@pytest.mark.parametrize(
    "name, first, last, from_step, to_step",
    [("table17-roberta-base-adalora-rte", 8, 4, 200, 1000), ("figure13-llama-2-7b-adalora", 16, 8, 84, 468 - 39)],
)
def test_the_budget_of_adalora_falls_between_the_printed_steps(name, first, last, from_step, to_step):
    run = recipe(name).run
    rule, steps = run.train.rank_budget, run.train.steps
    assert run.adapter.rank == first and rule.final == last
    many = 10**10  # matrices, so that every step of the fall shows
    values = [budget(rule, step, steps, many * first, many * last) for step in range(steps)]
    assert values[from_step] == many * first > values[from_step + 1]
    assert values[to_step - 1] > many * last == values[to_step]


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
            assert out.count('"name"') == len(all_recipes()) > len(NAMES)
        else:
            (tmp_path / "run.yaml").write_text(out)
            assert load_run(tmp_path / "run.yaml").seed == 42


def test_the_run_in_the_documentation_loads(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "papers" / "metatt.md").read_text()
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    run = load_run(tmp_path / "run.yaml")
    assert isinstance(run, CausalRunConfig) and run.adapter.method == "metatt-4d"
    assert to_dict(run.adapter.condition)["scope"] == "constant"
    assert f"lists {len(NAMES)} of them" in text
