"""The network of condition source "extractor": every spelling of its name, and the images that it sees."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.adapters.conditioning.extractor import image_conversion, load_extractor

timm = pytest.importorskip("timm")
NAME, HUB_ID = "test_resnet", "models--timm--test_resnet.r160_in1k"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def network(name=NAME, seed=0, mean=None, std=None, **options):
    """A small network of timm with random weights, and with statistics of its images if they are not its own."""
    torch.manual_seed(seed)
    statistics = {} if mean is None else {"mean": mean, "std": std}
    return timm.create_model(name, pretrained_cfg_overlay=statistics, **options).eval()


# ---- names -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights as timm would have downloaded them, and in two files; no network."""
    from huggingface_hub import constants

    state = network(seed=5).state_dict()
    snapshot = tmp_path / "hub" / HUB_ID / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    save_file(state, snapshot / "model.safetensors")
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return state


SPELLINGS = (
    NAME,
    f"timm:{NAME}",
    f"{NAME}.r160_in1k",
    f"{NAME}@weights.pth",
    f"timm:{NAME}@{{folder}}/weights.safetensors",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_name_loads_the_weights(spelling, weights):
    found = load_extractor(spelling.format(folder=os.getcwd())).state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_name_in_the_configuration_is_that_of_the_network(weights):
    """The features are those of the network that is loaded by hand."""
    condition = ConditionConfig(source="extractor", extractor=f"{NAME}@weights.pth", hidden=4)
    by_hand = network()
    by_hand.load_state_dict(weights)
    backbone = network("test_efficientnet", mean=by_hand.pretrained_cfg["mean"], std=by_hand.pretrained_cfg["std"])
    adapter = attach(backbone, AdapterConfig("metalora-cp", 2, targets="conv", condition=condition))
    images = torch.rand(2, 3, 32, 32)
    expected = by_hand.forward_head(by_hand.forward_features(images), pre_logits=True)
    torch.testing.assert_close(adapter.features(images), expected.detach())


BAD_NAMES = {
    "a file alone": ("weights.pth", "a checkpoint does not say its architecture: NAME@weights.pth"),
    "a file alone, with a prefix": ("timm:weights.pth", "a checkpoint does not say its architecture"),
    "a file that is not there": (f"{NAME}@gone.pth", "no such checkpoint file"),
    "no file": (f"{NAME}@", "no such checkpoint file"),
    "a file of another kind": (f"{NAME}@text.pth", "no weights: "),
    "a file of another network": ("test_vit@weights.pth", "no weights: Error(s) in loading state_dict"),
    "an unknown name": ("resnet81", "timm:resnet81: unknown; did you mean 'resnet18'?"),
    "an unknown tag": (f"{NAME}.nonsense", "no weights: Invalid pretrained tag (nonsense)"),
    "another library": ("torchvision:resnet18", "timm:torchvision:resnet18: unknown"),
    "neither a network nor weights": ("test_vit", "no weights: "),
    "no name": (None, "needs condition.extractor"),
}


@pytest.mark.parametrize("name, message", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_name_that_cannot_work_is_one_clear_error(name, message, weights):
    Path("text.pth").write_text("no weights")
    with pytest.raises(ValueError) as error:
        load_extractor(name)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert name is None or str(error.value).startswith(f"condition.extractor {name!r}: ")
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_a_download_that_failed_names_the_way_out(weights, tmp_path):
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(ValueError, match=f"no weights: .*; timm:{NAME}@CHECKPOINT reads a file"):
        load_extractor(NAME)


# ---- images ----------------------------------------------------------------------------------------------------------
def photograph(size):
    """A photograph, as a picture of this many pixels."""
    from PIL import Image

    image = Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg"))
    return image.crop((0, 0, 400, 400)).resize((size, size))


def transformed(model, picture):
    """A picture as timm prepares it for a network, (1, 3, size, size), without a crop."""
    from timm.data import create_transform, resolve_data_config

    size = (3, *model.patch_embed.img_size) if hasattr(model, "patch_embed") else (3, picture.height, picture.width)
    settings = resolve_data_config({"crop_pct": 1.0, "input_size": size}, model=model)
    return create_transform(**settings)(picture)[None]


def seen_by(extractor, backbone, images, **condition):
    """What the extractor gets if the backbone gets the images."""
    config = ConditionConfig(source="extractor", hidden=4, **condition)
    attached = attach(backbone, AdapterConfig("metalora-cp", 2, targets="conv", condition=config), extractor=extractor)
    seen = []
    handle = extractor.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    attached.features(images)
    handle.remove()
    return seen[-1]


# 1e-5: rounding in float32. 0.025: Pillow, which timm resizes with, rounds to 256 levels after each of its two passes
# and clips what overshoots; a level is 0.008 here.
NETWORKS = {
    "other statistics": ((NAME, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)), 64, 1e-5),
    "the same statistics": ((NAME, *IMAGENET), 64, 0.0),
    "a fixed size": (("test_vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), 224, 0.025),
}


@pytest.mark.parametrize("extractor, size, tolerance", NETWORKS.values(), ids=NETWORKS)
def test_the_extractor_sees_what_timm_prepares_for_it(extractor, size, tolerance):
    name, mean, std = extractor
    backbone, extractor = network("test_efficientnet", mean=IMAGENET[0], std=IMAGENET[1]), network(name, 1, mean, std)
    picture = photograph(size)
    images = transformed(backbone, picture)
    seen = seen_by(extractor, backbone, images)
    assert (seen - transformed(extractor, picture)).abs().max() <= tolerance
    assert torch.equal(seen, images) == (tolerance == 0)


def test_the_statistics_of_the_user_come_before_those_of_the_backbone():
    backbone, extractor = network("test_efficientnet"), network(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    seen = seen_by(extractor, backbone, torch.full((1, 3, 8, 8), 0.75), image_mean=(0, 0, 0), image_std=(1, 1, 1))
    assert seen.unique().tolist() == [1.0]


def test_images_are_resized_to_the_size_of_the_user():
    backbone, images = network("test_efficientnet"), torch.rand(1, 3, 8, 8)
    assert seen_by(network(), backbone, images, image_size=24).shape == (1, 3, 24, 24)


def test_a_backbone_that_states_nothing_hands_its_images_over_with_a_warning():
    backbone, images = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), torch.rand(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="Sequential does not state how its images are normalised"):
        assert torch.equal(seen_by(network(), backbone, images), images)


PLAIN = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 4))
BAD_SETTINGS = {
    "a mean without a deviation": (network(), {"image_mean": (0.0, 0.0, 0.0)}, "expected a number for each channel"),
    "unequal lengths": (network(), {"image_mean": (0.0,), "image_std": (1.0, 1.0)}, "expected a number for each"),
    "another number of channels": (network(), {"image_mean": (0.0,), "image_std": (1.0,)}, "have 1 channels, those of"),
    "a size that is not the fixed one": (network("test_vit"), {"image_size": 32}, "32: .* takes 160x160 only"),
    "an extractor that states nothing": (PLAIN, {"image_mean": (0.0,), "image_std": (1.0,)}, "has no effect"),
}


@pytest.mark.parametrize("extractor, settings, message", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings_that_cannot_work_are_refused(extractor, settings, message):
    with pytest.raises(ValueError, match=message):
        image_conversion(network(), extractor, ConditionConfig(source="extractor", **settings))


IGNORED = {
    "a name": ({"extractor": NAME}, None, "condition.extractor"),
    "statistics": ({"image_mean": (0.0,)}, None, "condition.image_mean"),
    "a size": ({"image_size": 32}, None, "condition.image_size"),
    "a network": ({}, PLAIN, "attach"),
}


@pytest.mark.parametrize("settings, extractor, message", IGNORED.values(), ids=IGNORED)
def test_a_setting_that_another_source_would_ignore_is_refused(settings, extractor, message):
    config = AdapterConfig("metalora-cp", 2, targets="conv", condition=ConditionConfig(**settings))
    with pytest.raises(
        ValueError, match=rf"{message}.* is for condition source 'extractor', and the source is 'stages'"
    ):
        attach(network(), config, extractor=extractor)


def test_inputs_that_are_no_images_stay():
    conversion = image_conversion(network(), network(mean=(0.5,) * 3, std=(0.5,) * 3), ConditionConfig())
    inputs = {"input_ids": torch.ones(1, 2), "other": SimpleNamespace()}
    assert conversion(inputs) is inputs
