"""The emoji suite, on packages that these tests make and serve: nothing is fetched from outside."""

import base64
import hashlib
import io
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image, ImageDraw

from metalora.learner.data import ImagePreprocessor, PoolEpisodes, PreparedInputs
from metalora_papers.metalora import emoji
from metalora_papers.metalora.emoji_colours import HUES, fill_level, main_hue, measure
from metalora_papers.metalora.emoji_packages import PACKAGES, Package, fetch_emoji, on_white, read_drawings
from support.command import papers_command

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
ALIKE = ("1F46A", "1F46B")  # every vendor draws these two alike


def entry(unified, name, category, subcategory, tones=()):
    variations = {tone: {"image": f"{unified}-{tone}.png"} for tone in tones}
    more = {"skin_variations": variations} if tones else {}
    return {
        "unified": unified, "name": name, "category": category, "subcategory": subcategory,
        "image": f"{unified}.png", **more,
    }  # fmt: skip


def entries():
    """60 animals, 20 roles with five tones each, and emoji of which a rule speaks."""
    animals = [entry(f"1F4{k:02}", f"ANIMAL {k}", "Animals & Nature", "animal-mammal") for k in range(60)]
    people = emoji.PEOPLE
    roles = [entry(f"1F8{k:02}", f"{word} FARMER", people, "person-role", TONES)
             for k, word in enumerate(["MAN", "WOMAN"] * 10)]  # fmt: skip
    special = [
        entry("1F473", "MAN WITH TURBAN", people, "person-role"),
        entry("1F473-200D-2640-FE0F", "WOMAN WEARING TURBAN", people, "person-role"),
        entry("1F473-200D-2642-FE0F", "MAN WEARING TURBAN", people, "person-role"),
        entry("1F6B6", "PEDESTRIAN", people, "person-activity"),
        entry("1F6B6-200D-27A1-FE0F", "PERSON WALKING FACING RIGHT", people, "person-activity"),
        entry(ALIKE[0], "FAMILY: MAN, BOY", people, "family"),
        entry(ALIKE[1], "FAMILY: WOMAN, BOY", people, "family", ("1F3FB-1F3FB", "1F3FB-1F3FC")),
        entry("1F3FB", "FITZPATRICK TYPE", "Component", "skin-tone"),
    ]
    return [*animals, *roles, *special]


def drawing(seed):
    """A random ellipse on a transparent ground, as the bytes of a PNG."""
    numbers = torch.randint(0, 30, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
    picture = Image.new("RGBA", (64, 64))
    colour = tuple(8 * number for number in numbers[:3])
    ImageDraw.Draw(picture).ellipse((1 + numbers[3], 2, 33 + numbers[4], 60), fill=colour)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def archive(vendor, number):
    """The package of a vendor, as the registry would send it."""
    files = {"package/emoji.json": json.dumps(entries()).encode(), "package/README.md": b"read me"}
    for k, item in enumerate(entries()):
        seed = 1 if item["unified"] in ALIKE else 1000 * number + 10 * k
        for j, details in enumerate([item, *item.get("skin_variations", {}).values()]):
            files[f"package/img/{vendor}/64/{details['image']}"] = drawing(seed + j)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as target:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))
    return stream.getvalue()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Packages of two vendors on a local registry, and its address."""
    root = tmp_path_factory.mktemp("registry")
    packages = {}
    for number, vendor in enumerate(("google", "apple")):
        content = archive(vendor, number + 1)
        integrity = base64.b64encode(hashlib.sha512(content).digest()).decode()
        packages[vendor] = package = Package(vendor, PACKAGES[vendor].version, integrity)
        folder = root / package.name / "-"
        folder.mkdir(parents=True)
        (folder / f"{package.name}-{package.version}.tgz").write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield packages, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def folder(registry, tmp_path_factory):
    """The two packages, fetched."""
    packages, address = registry
    folder = tmp_path_factory.mktemp("cache")
    files = fetch_emoji(("google", "apple"), folder, registry=address, packages=packages)
    assert [file.name for file in files] == ["google-16.0.0.safetensors", "apple-16.0.0.safetensors"]
    assert sorted(folder.iterdir()) == sorted(files)  # the archives are gone
    return folder


@pytest.fixture(scope="module")
def suite(folder):
    return emoji.load_emoji(("google", "apple"), folder)


def test_what_was_fetched_is_not_fetched_again(folder, registry):
    fetch_emoji(("google",), folder, registry="http://127.0.0.1:9", packages=registry[0])
    source = read_drawings("google", folder)
    number = source.files["1F400.png"]
    assert torch.equal(source.images[number], on_white(drawing(1000)))
    assert source.images[number][0, 0].tolist() == [255, 255, 255]


def test_fetching_that_fails(registry, tmp_path, monkeypatch):
    packages, address = registry
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


def test_parts(suite, folder):
    assert sum(map(len, suite.parts.values())) == len(suite.inputs)
    groups = {name: set(suite.groups[rows].tolist()) for name, rows in suite.parts.items()}
    assert not groups["train"] & groups["test"] and not groups["val"] & (groups["train"] | groups["test"])
    without = emoji.load_emoji(("google", "apple"), folder, left_out="apple")
    codes, names = without.notions["vendor"]
    vendors = {name: {names[code] for code in codes[rows].tolist()} for name, rows in without.parts.items()}
    assert vendors == {"train": {"google"}, "val": {"google"}, "test": {"apple"}}
    assert set(without.groups[without.parts["test"]].tolist()) == groups["test"]
    with pytest.raises(ValueError, match="unknown vendor 'twiter'"):
        emoji.load_emoji(("google", "apple"), folder, left_out="twiter")


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
