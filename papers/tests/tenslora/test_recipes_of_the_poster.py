"""The recipes of TensLoRA: their sizes on the real architectures, without weights."""

import re
from functools import cache
from pathlib import Path

import pytest

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.zoo import load_model
from metalora_papers.recipes import recipe
from metalora_papers.registry import load_run
from metalora_papers.tenslora.config import ImageRunConfig
from metalora_papers.tenslora.recipes import ISO_RANKS, recipes
from metalora_papers.tenslora.table import NAMES, protocol_rows

pytest.importorskip("transformers")
MODELS = {"dtd": "vit-base", "mrpc": "roberta-base"}
COUNTS = {  # copies * (sum of sizes * ranks + product of ranks); the first as the authors' code counts
    "lora": 442_368,
    "tenslora-att-isorank": 261_504,
    "tenslora-qkv-isorank": 153_888,
    "tenslora-depth-isorank": 38_688,
    "tenslora-att-qkv-isorank": 130_464,
    "tenslora-att-depth-isorank": 32_832,
    "tenslora-qkv-depth-isorank": 16_504,
    "tenslora-att-qkv-depth-isorank": 39_640,
    "tenslora-att-isoparameters": 36 * (12 * (768 + 64 + 12) + 12**3),
    "tenslora-qkv-isoparameters": 12 * (22 * 1536 + 9 + 22 * 22 * 3),
    "tenslora-depth-isoparameters": 3 * (63 * 1536 + 144 + 63 * 63 * 12),
    "tenslora-att-qkv-isoparameters": 12 * (22 * (768 + 64) + 144 + 9 + 22 * 22 * 12 * 3),
    "tenslora-att-depth-isoparameters": 3 * (29 * (768 + 64) + 288 + 29 * 29 * 144),
    "tenslora-qkv-depth-isoparameters": 438_045,
    "tenslora-att-qkv-depth-isoparameters": 31 * (768 + 64) + 144 + 9 + 144 + 31 * 31 * 12 * 3 * 12,
}


@cache
def model(name):
    return load_model(name, weights=False)


@pytest.mark.parametrize("task", MODELS)
@pytest.mark.parametrize("method", COUNTS)
def test_a_recipe_is_a_run_with_the_published_count(task, method, tmp_path):
    one = recipe(f"{task}-{MODELS[task]}-{method}")
    (tmp_path / "run.yaml").write_text(one.yaml())
    assert load_run(tmp_path / "run.yaml") == one.run
    adapter = one.run.adapter
    targets = find_targets(model(MODELS[task]), adapter.targets)
    assert len(targets) == 36 and count_params(adapter, targets) == COUNTS[method]


def test_the_ranks_are_those_of_the_protocol():
    lora = recipe("dtd-vit-base-lora").run.adapter
    rows = protocol_rows(model("vit-base"), lora)
    ranks = {name: rows[f"tenslora-{name}, isoparameters"].rank for name in ISO_RANKS}
    assert ranks == ISO_RANKS and len(rows) == len(NAMES) == 2 * len(ISO_RANKS)
    assert {row.alpha for row in rows.values()} == {recipe("dtd-vit-base-tenslora-qkv-isorank").run.adapter.alpha}


def test_what_the_recipes_share():
    assert len(recipes()) == 2 * len(COUNTS)
    for one in recipes().values():
        train = one.run.train
        assert (train.schedule, train.warmup, train.lr, train.weight_decay) == ("cosine", 0.1, 5e-4, 0.01)
        assert train.steps == 10 * (one.run.examples // one.run.batch)
        assert one.yaml().startswith("# TensLoRA") and "not" in "".join(one.note)
    assert recipe("dtd-vit-base-lora").run.train.steps == 150  # 1000 pictures, 15 batches of 64
    assert recipe("mrpc-roberta-base-lora").run.train.steps == 10 * (3301 // 16)


def test_the_run_in_the_documentation_loads(tmp_path):
    text = (Path(__file__).parents[3] / "docs" / "papers" / "tenslora.md").read_text()
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    run = load_run(tmp_path / "run.yaml")
    assert isinstance(run, ImageRunConfig) and run.adapter.method == "tenslora-qkv-depth"
    assert run.train.steps == 10 * (1880 // run.batch)  # ten epochs of DTD's 1880 training pictures
    assert f"{len(recipes())} in all" in text
