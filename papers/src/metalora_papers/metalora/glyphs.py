"""Letters of a script, drawn from installed fonts; the faces of the test part never occur in the train part."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.image_sources import ImageSet

SCRIPTS = {
    "glyphs-latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "glyphs-latin-lower": "abcdefghijklmnopqrstuvwxyz",
    "glyphs-greek": "αβγδεζηθικλμνξοπρστυφχψω",
    "glyphs-cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
}
DEFAULT_FACES = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*")  # of the fonts that come with matplotlib
DRAWN, SIZE, VARIANTS, JITTER_SEED = 56, 28, 10, 11
MAX_ANGLE, MAX_SHIFT, SCALE_RANGE = 8.0, 0.12, (0.8, 1.1)


def load_glyphs(script: str, split: str, font_dir: str | Path | None = None) -> ImageSet:
    """Draw every letter of a script in every face, ten times, slightly rotated, scaled and moved.

    Args:
        script: A key of `SCRIPTS`.
        split: "train" or "test", which is every fourth face. A face without some of the letters is left out.
        font_dir: Folder of .ttf and .otf files, such as Debian's /usr/share/fonts; None for matplotlib's.

    Returns:
        Images, uint8 (n, 28, 28), and labels.

    Raises:
        ValueError: An unknown script or split, fewer than four usable faces.
    """
    check_choice("script", script, tuple(SCRIPTS))
    check_choice("split", split, ("train", "test"))
    letters = SCRIPTS[script]
    drawn = []
    for path in font_files(font_dir):
        glyphs = _draw_face(path, letters)
        if glyphs is not None:
            drawn.append(glyphs)
    if len(drawn) < 4:
        raise ValueError(f"{script}: expected four faces with all its letters, found {len(drawn)} in {font_dir}")
    # Files sort by family, four styles each: the diagonal takes another style of each family.
    is_test = torch.tensor([number % 4 == number // 4 % 4 for number in range(len(drawn))])
    in_split = is_test if split == "test" else ~is_test
    faces = torch.from_numpy(np.stack(drawn))[in_split]  # (face, letter, 56, 56)
    labels = torch.arange(len(letters)).repeat(len(faces)).repeat_interleave(VARIANTS)
    pages = faces.flatten(0, 1).repeat_interleave(VARIANTS, 0)  # (n, 56, 56), in the order of the labels
    images = _jitter(pages, split)
    return ImageSet(script, images, labels, tuple(letters))


def font_files(font_dir: str | Path | None) -> list[Path]:
    """Return the font files of a folder and its subfolders, by file name; ValueError if the folder has none."""
    if font_dir is None:
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        files = [file for pattern in DEFAULT_FACES for file in folder.glob(f"{pattern}.ttf")]
    else:
        folder = Path(font_dir)
        files = [file for file in folder.rglob("*") if file.suffix in (".ttf", ".otf")]
    if not files:
        raise ValueError(f"{folder}: no .ttf or .otf files")
    return sorted(files, key=lambda file: file.name)


def _draw_face(path: Path, letters: str) -> np.ndarray | None:
    """Return the letters in one face, uint8 (letter, 56, 56), or None if the face lacks one."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(path, 44)
    # PIL does not report a letter that a font lacks; it draws the font's box for it, as for a code that is no letter.
    missing = bytes(font.getmask("\uffff"))
    pages = []
    for letter in letters:
        if bytes(font.getmask(letter)) in (missing, b""):
            return None
        page = Image.new("L", (DRAWN, DRAWN))
        left, top, right, bottom = font.getbbox(letter)
        # The box of the ink in the middle of the page, whatever the face leaves around it.
        corner = ((DRAWN - left - right) / 2, (DRAWN - top - bottom) / 2)
        ImageDraw.Draw(page).text(corner, letter, fill=255, font=font)
        pages.append(np.asarray(page))
    return np.stack(pages)


def _jitter(pages: Tensor, split: str) -> Tensor:
    """Rotate, scale and move each page (n, 56, 56) a little, seeded, and halve its size: uint8 (n, 28, 28)."""
    n = len(pages)
    generator = torch.Generator().manual_seed(JITTER_SEED + (split == "test"))
    uniform = torch.rand(n, 4, generator=generator)
    angle = torch.deg2rad((2 * uniform[:, 0] - 1) * MAX_ANGLE)
    low, high = SCALE_RANGE
    scale = low + (high - low) * uniform[:, 1]
    shift = (2 * uniform[:, 2:] - 1) * MAX_SHIFT
    # The grid says where an output pixel is read, so that its matrix is the inverse: a larger letter divides by scale.
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    matrix = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).reshape(n, 2, 3)
    grid = F.affine_grid(matrix, [n, 1, DRAWN, DRAWN], align_corners=False)  # (n, 56, 56, 2)
    moved = F.grid_sample(pages[:, None].float(), grid, align_corners=False)
    return F.avg_pool2d(moved, DRAWN // SIZE)[:, 0].round().to(torch.uint8)
