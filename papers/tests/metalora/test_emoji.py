"""The emoji suite, on packages that these tests make and serve: nothing is fetched from outside."""

import pytest
import torch
from papers_oracles.emoji import drawing, entries

from metalora.learner.data import ImagePreprocessor, PoolEpisodes, PreparedInputs
from metalora_papers.metalora import emoji
from metalora_papers.metalora.emoji_colours import HUES, fill_level, main_hue, measure
from metalora_papers.metalora.emoji_packages import Package, fetch_emoji, on_white, read_drawings
from support.command import papers_command


@pytest.fixture(scope="module")
def suite(emoji_folder):
    return emoji.load_emoji(("google", "apple"), emoji_folder)


def test_what_was_fetched_is_not_fetched_again(emoji_folder, emoji_registry):
    fetch_emoji(("google",), emoji_folder, registry="http://127.0.0.1:9", packages=emoji_registry[0])
    source = read_drawings("google", emoji_folder)
    number = source.files["1F400.png"]
    assert torch.equal(source.images[number], on_white(drawing(1000)))
    assert source.images[number][0, 0].tolist() == [255, 255, 255]


def test_fetching_that_fails(emoji_registry, tmp_path, monkeypatch):
    packages, address = emoji_registry
    changed = {"google": Package("google", "16.0.0", "AAAA")}
    with pytest.raises(ValueError, match="tgz: its sha512 is not that of emoji-datasource-google 16.0.0"):
        fetch_emoji(("google",), tmp_path, registry=address, packages=changed)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"google 16.0.0 cannot be fetched: http.*refused.*npm is not installed"):
        fetch_emoji(("google",), tmp_path, registry="http://127.0.0.1:9", packages=packages)
    with pytest.raises(ValueError, match="unknown vendor 'gogle'; did you mean 'google'"):
        fetch_emoji(("gogle",), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="drawings of google are not here; fetch them: metalora-papers fetch emoji"):
        emoji.load_emoji(folder=tmp_path)
    (tmp_path / "google-16.0.0.safetensors").write_bytes(b"no drawings")
    with pytest.raises(ValueError, match="the file is damaged"):
        emoji.load_emoji(folder=tmp_path)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    code, _, error = papers_command("fetch", "emoji", "--out", tmp_path / "drawings")
    assert code == 2 and "cannot be fetched" in error and error.strip().count("\n") == 0
    code, _, error = papers_command("fetch", "emjoi")
    assert code == 2 and "unknown data 'emjoi'; did you mean 'emoji'?" in error


def test_labels(suite):
    count = 2 * (60 + 6 * 20 + 9)  # without the component
    assert suite.inputs.shape == (count, 64, 64, 3) and suite.inputs.dtype == torch.uint8
    assert all(notion.codes.shape == (count,) for notion in suite.notions.values())
    assert tuple(suite.notions) == emoji.TRAINED + emoji.NEVER_TRAINED
    assert counted(suite, "vendor") == {"apple": count // 2, "google": count // 2}
    assert counted(suite, "skin") == {name: 40 for name in emoji.SKIN_TONES.values()} | {"light": 42}
    assert counted(suite, "people") == {"person-role": 2 * (6 * 20 + 3)}
    filled = counted(suite, "filled")
    assert max(filled.values()) - min(filled.values()) < count / 10


def counted(suite, column):
    codes, names = suite.notions[column]
    return {name: int((codes == k).sum()) for k, name in enumerate(names) if (codes == k).any()}


def test_genders():
    by_name = dict(zip((item["name"] for item in entries()), emoji.genders(entries()), strict=True))
    assert by_name["MAN WITH TURBAN"] == "" and by_name["PEDESTRIAN"] == by_name["FAMILY: MAN, BOY"] == ""
    assert by_name["WOMAN WEARING TURBAN"] == by_name["WOMAN FARMER"] == "woman" and by_name["MAN FARMER"] == "man"


def test_groups(suite):
    """An emoji, its tones, vendors and mirror image, and emoji that are drawn alike, are one group."""
    sizes = suite.groups.unique(return_counts=True)[1].unique(return_counts=True)
    # 60 animals and 3 turbans; the pedestrian with the mirror image; two families; 20 roles with five tones.
    assert dict(zip(*(part.tolist() for part in sizes), strict=True)) == {2: 63, 4: 1, 8: 1, 12: 20}


def test_parts(suite, emoji_folder):
    assert sum(map(len, suite.parts.values())) == len(suite.inputs)
    groups = {name: set(suite.groups[rows].tolist()) for name, rows in suite.parts.items()}
    assert not groups["train"] & groups["test"] and not groups["val"] & (groups["train"] | groups["test"])
    without = emoji.load_emoji(("google", "apple"), emoji_folder, left_out="apple")
    codes, names = without.notions["vendor"]
    vendors = {name: {names[code] for code in codes[rows].tolist()} for name, rows in without.parts.items()}
    assert vendors == {"train": {"google"}, "val": {"google"}, "test": {"apple"}}
    assert set(without.groups[without.parts["test"]].tolist()) == groups["test"]
    with pytest.raises(ValueError, match="unknown vendor 'twiter'"):
        emoji.load_emoji(("google", "apple"), emoji_folder, left_out="twiter")


@pytest.mark.parametrize("column", ["vendor", "category", "skin", "gender"])
def test_episodes(suite, column):
    episode = suite.test_episode(column, 0, 0)
    assert not set(suite.groups[episode.support].tolist()) & set(suite.groups[episode.query].tolist())
    assert len(episode.query_labels.unique()) >= 2


def test_a_learner_draws_from_the_pool_of_a_part(suite):
    pool = suite.task_pool("train")
    rows = suite.parts["train"]
    assert tuple(pool.columns) == emoji.TRAINED and pool.modality == "images" and len(pool) == len(rows)
    assert torch.equal(pool.inputs[5], suite.inputs[rows[5]].permute(2, 0, 1))
    names = [suite.notions["vendor"].class_names[code] for code in suite.notions["vendor"].codes[rows].tolist()]
    assert pool.columns["vendor"].values() == names
    episodes = PoolEpisodes([PreparedInputs(pool, ImagePreprocessor((16, 16), 16))], None)
    draw = episodes.draw(torch.Generator().manual_seed(0))
    assert draw.inputs.shape == (108, 3, 16, 16) and set(draw.names) <= set(emoji.TRAINED)
    with pytest.raises(ValueError, match="unknown column 'skn'; did you mean 'skin'"):
        suite.task_pool("test", ["skn"])


COLOURS = {"red": (220, 20, 30), "orange": (220, 150, 90), "yellow": (255, 204, 50), "green": (80, 180, 60),
           "blue": (40, 130, 220), "purple": (150, 70, 200), "pink": (255, 60, 160)}  # fmt: skip


def test_colours():
    images = torch.full((len(COLOURS) + 2, 10, 10, 3), 255, dtype=torch.uint8)
    for k, colour in enumerate(COLOURS.values()):
        images[k, : k + 1] = torch.tensor(colour, dtype=torch.uint8)
    images[-2, :9] = 90  # grey; the last one stays white
    colours = measure(images)
    torch.testing.assert_close(colours.drawn, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.0]))
    codes, names = main_hue(colours)
    assert names == tuple(HUES)
    assert [names[code] for code in codes[:6].tolist()] == list(HUES)
    assert names[codes[6]] == "purple" and codes[7:].tolist() == [-1, -1]
    assert fill_level(colours).codes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]


def test_a_drawing_of_two_colours_has_no_main_hue():
    image = torch.full((1, 9, 9, 3), 255, dtype=torch.uint8)
    for k, name in enumerate(("red", "green", "blue")):
        image[0, 3 * k : 3 * k + 3] = torch.tensor(COLOURS[name], dtype=torch.uint8)
    assert main_hue(measure(image)).codes.tolist() == [-1]
