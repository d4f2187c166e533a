"""Pictures of every kind become RGB; those that cannot be read are named."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from metalora.learner.data import ImagePreprocessor
from metalora.learner.data.pictures import open_picture

RED, BLUE = (255, 0, 0), (0, 0, 255)


def noise(height=20, width=30, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(item):
    return np.asarray(open_picture(item))


def saved(path, image, **settings):
    image.save(path, **settings)
    return path


def test_a_png_is_read_as_it_is(tmp_path):
    assert (pixels(saved(tmp_path / "a.png", Image.fromarray(noise()))) == noise()).all()


def test_the_suffix_does_not_matter(tmp_path):
    assert (pixels(saved(tmp_path / "a.jpg", Image.fromarray(noise()), format="PNG")) == noise()).all()


def test_palette(tmp_path):
    image = Image.fromarray(noise()).quantize(16)
    path = saved(tmp_path / "a.png", image)
    assert Image.open(path).mode == "P"
    assert (pixels(path) == np.asarray(image.convert("RGB"))).all()


def test_transparent_parts_are_white(tmp_path):
    image = Image.new("RGBA", (4, 2), (*RED, 0))
    image.putpixel((0, 0), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    result = pixels(saved(tmp_path / "a.png", image))
    assert result[0, 0].tolist() == [255, 0, 0]
    assert result[0, 1].tolist() == [204, 204, 204]
    assert result[1, 3].tolist() == [255, 255, 255]


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (4, 2))
    image.putpalette([*RED, *BLUE])
    image.putpixel((0, 0), 1)
    result = pixels(saved(tmp_path / "a.png", image, transparency=0))
    assert result[0, 0].tolist() == list(BLUE)
    assert result[1, 1].tolist() == [255, 255, 255]


def test_grey_with_16_bits(tmp_path):
    values = (np.arange(600, dtype=np.uint16) * 109).reshape(20, 30)
    result = pixels(saved(tmp_path / "a.png", Image.fromarray(values)))
    assert result.shape == (20, 30, 3)
    assert (result == (values // 256)[..., None]).all()


@pytest.mark.parametrize("mode", ("1", "L", "LA", "CMYK", "YCbCr", "I", "F", "HSV"))
def test_modes(mode):
    image = Image.fromarray(noise()).convert("L" if mode in ("I", "F") else "RGB").convert(mode)
    expected = np.asarray(Image.fromarray(noise()).convert("L" if mode in ("1", "L", "LA", "I", "F") else "RGB"))
    result = open_picture(image)
    assert result.mode == "RGB" and result.size == (30, 20)
    if mode in ("L", "I", "F"):
        assert (np.asarray(result)[..., 0] == expected).all()


def test_the_orientation_of_exif_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture must be turned by 90 degrees clockwise
    path = saved(tmp_path / "a.png", Image.fromarray(noise()), exif=exif)
    assert (pixels(path) == np.rot90(noise(), -1)).all()


def test_the_first_picture_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE)]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert (pixels(path) == RED).all()


def test_bytes_and_mappings(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise()))
    content = path.read_bytes()
    for item in (content, {"bytes": content, "path": None}, {"bytes": None, "path": str(path)}):
        assert (pixels(item) == noise()).all()


@pytest.mark.parametrize("shape", ((20, 30), (20, 30, 1), (20, 30, 3), (3, 20, 30)))
@pytest.mark.parametrize("dtype", (np.uint8, np.float32, np.int64))
def test_arrays(shape, dtype):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    item = values / np.float32(255) if dtype == np.float32 else values.astype(dtype)
    expected = values.transpose(1, 2, 0) if shape[0] == 3 else values
    expected = expected if expected.ndim == 3 else expected[..., None]
    assert (pixels(item) == expected).all()


def test_tensors_have_channels_first():
    values = torch.from_numpy(noise()).permute(2, 0, 1)
    assert (pixels(values) == noise()).all()
    assert (pixels(values / 255) == noise()).all()
    assert pixels(torch.zeros(1, 4, 3)).shape == (4, 3, 3)


def jpeg():
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


BROKEN = {
    "an empty file": (b"", "empty"),
    "a truncated JPEG": (jpeg()[:1500], "cannot be read"),
    "a header alone": (jpeg()[:20], "not a picture|cannot be read"),
    "a text": (b"this is not a picture", "not a picture"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path, case):
    content, message = BROKEN[case]
    path = tmp_path / "photo 7.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"photo 7.jpg: .*({message})") as error:
        open_picture(path)
    assert "\n" not in str(error.value)


def test_a_truncated_png_is_named(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(noise(64, 64)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="a.png: the picture cannot be read"):
        open_picture(path)


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match="a.png: a folder"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="b.png: there is no such file"):
        open_picture(tmp_path / "b.png")


NOT_PICTURES = {
    "numbers that are too large": (np.full((4, 4), 300.0), "from 300 to 300; expected 0 to 1"),
    "NaN": (np.full((4, 4), np.nan), "expected 0 to 1"),
    "five channels": (np.zeros((7, 7, 5), np.uint8), r"shape \(7, 7, 5\)"),
    "no pixels": (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
    "a number": (7, "a int is not a picture"),
}


@pytest.mark.parametrize("case", NOT_PICTURES)
def test_what_is_not_a_picture_is_named(case):
    item, message = NOT_PICTURES[case]
    with pytest.raises(ValueError, match=f"picture 3: .*{message}"):
        good = np.zeros((4, 4), np.uint8)
        ImagePreprocessor(size=(4, 4), resize=4)([good, good, item])
