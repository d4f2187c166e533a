"""Tables, folders, lists and iterables of a user become pools; what cannot be read is named."""

import csv
import json

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from metalora.learner.data import PreparedInputs, TaskPool, read_tasks
from metalora.learner.data.preprocessing import ImagePreprocessor
from metalora.learner.data.tables import typed_cells

ROWS = 12
FRUITS = [("apple", "pear")[row % 2] for row in range(ROWS)]
RIPE = [("", "1", "2")[row % 3] for row in range(ROWS)]


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


def write_csv(path, header, rows, encoding="utf-8", delimiter=","):
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


@pytest.fixture
def labelled(tmp_path):
    """A table with relative paths in the folder of the pictures."""
    names = [f"{row}.png" for row in range(ROWS)]
    for name in names:
        picture(tmp_path / "images" / name)
    rows = list(zip(names, FRUITS, RIPE, strict=True))
    return write_csv(tmp_path / "labels.csv", ["image", "fruit", "ripeness"], rows)


def texts(count=ROWS):
    return [f"sentence number {row}" for row in range(count)]


# ---- tables of pictures ---------------------------------------------------------------------------------------------
def test_paths_are_relative_to_the_folder_of_images(labelled):
    (pool,) = read_tasks(labelled, images=labelled.parent / "images")
    assert pool.inputs == [labelled.parent / "images" / f"{row}.png" for row in range(ROWS)]
    assert pool.modality == "images" and pool.name == "labels.csv"
    assert pool.columns["fruit"].values() == FRUITS
    assert pool.columns["ripeness"].classes == (1, 2)
    assert pool.columns["ripeness"].codes.tolist() == [-1, 0, 1] * 4


def test_paths_are_relative_to_the_folder_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    picture(tmp_path / "sub" / "a.png")
    picture(tmp_path / "b.png")
    table = write_csv(tmp_path / "t.csv", ["picture"], [["sub/a.png"], [tmp_path / "b.png"]])
    (pool,) = read_tasks(str(table))
    assert pool.inputs == [tmp_path / "sub" / "a.png", tmp_path / "b.png"] and not pool.columns


def test_paths_are_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    (pool,) = read_tasks({"image": ["a.png"]})
    assert [path.resolve() for path in pool.inputs] == [tmp_path / "a.png"]


def test_a_column_of_paths_is_recognised(tmp_path):
    picture(tmp_path / "a.PNG")
    table = write_csv(tmp_path / "t.csv", ["what it shows", "where"], [["a cat", "a.PNG"]])
    assert read_tasks(table)[0].inputs == [tmp_path / "a.PNG"]


BAD_PATHS = {
    "a missing file": ("nowhere.png", "row 2: there is no file nowhere.png .looked in: .*images"),
    "a folder": ("folder.png", "folder.png: a folder, expected a file"),
    "an empty file": ("empty.png", r"empty.png: the file is empty \(0 bytes\)"),
    "no path": ("", "row 2 has no picture"),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_a_bad_path_is_named(tmp_path, case):
    path, message = BAD_PATHS[case]
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "folder.png").mkdir()
    (tmp_path / "images" / "empty.png").touch()
    table = write_csv(tmp_path / "labels.csv", ["image", "label"], [["a.png", 1], [path, 2]])
    with pytest.raises(ValueError, match=message):
        read_tasks(table, images=tmp_path / "images")


def test_an_unreadable_picture_is_named_before_anything_starts(labelled):
    (labelled.parent / "images" / "7.png").write_text("not a picture")
    (pool,) = read_tasks(labelled, images=labelled.parent / "images")
    with pytest.raises(ValueError, match="images/7.png: this file is not a picture"):
        PreparedInputs(pool, ImagePreprocessor((4, 4), 4))


# ---- formats --------------------------------------------------------------------------------------------------------
def as_tsv(path):
    return write_csv(path / "t.tsv", ["text", "fruit"], zip(texts(), FRUITS, strict=True), delimiter="\t")


def as_csv_with_a_mark(path):
    return write_csv(path / "t.csv", ["text", "fruit"], zip(texts(), FRUITS, strict=True), encoding="utf-8-sig")


def as_utf_16(path):
    return write_csv(path / "t.csv", ["text", "fruit"], zip(texts(), FRUITS, strict=True), encoding="utf-16")


def with_semicolons(path):
    return write_csv(path / "t.csv", ["text", "fruit"], zip(texts(), FRUITS, strict=True), delimiter=";")


def as_jsonl(path):
    lines = [json.dumps({"text": text, "fruit": fruit}) for text, fruit in zip(texts(), FRUITS, strict=True)]
    (path / "t.jsonl").write_text("\n".join(lines) + "\n\n")
    return path / "t.jsonl"


def frame(path=None):
    return pandas.DataFrame({"text": texts(), "fruit": FRUITS})


def written_by_pandas(path):
    frame().to_csv(path / "t.csv", index=False)
    return path / "t.csv"


def as_parquet(path):
    frame().to_parquet(path / "t.parquet")
    return path / "t.parquet"


def as_categories(path):
    return frame().astype({"fruit": "category"})


def with_another_index(path):
    return frame().set_index(pandas.Index(range(100, 100 + ROWS)))


def as_data_set(path):
    return pytest.importorskip("datasets").Dataset.from_pandas(frame())


def as_data_set_with_class_names(path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(text=datasets.Value("string"), fruit=datasets.ClassLabel(names=["pear", "apple"]))
    return datasets.Dataset.from_dict({"text": texts(), "fruit": FRUITS}, features=features)


def as_rows(path):
    return [{"text": text, "fruit": fruit} for text, fruit in zip(texts(), FRUITS, strict=True)]


def as_columns(path):
    return {"text": texts(), "fruit": np.array(FRUITS)}


def as_columns_of_pandas(path):
    return dict(frame())


FORMATS = (as_tsv, as_csv_with_a_mark, as_utf_16, with_semicolons, as_jsonl, frame, written_by_pandas, as_parquet)
FORMATS += (as_categories, with_another_index, as_data_set, as_data_set_with_class_names, as_rows, as_columns)
FORMATS += (as_columns_of_pandas,)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("settings", ({}, dict(text_column="text", label_columns="fruit")))
def test_every_format_of_a_table(tmp_path, form, settings):
    (pool,) = read_tasks(form(tmp_path), **settings)
    assert pool.inputs == texts() and pool.modality == "text"
    assert pool.columns["fruit"].values() == FRUITS
    assert pool.columns["fruit"].classes == ("apple", "pear")


def test_pictures_of_a_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    colours = ("red", "blue") * 3
    columns = {"image": [Image.new("RGB", (5, 5), colour) for colour in colours], "label": [0, 1] * 3}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["r", "b"]))
    data_set = datasets.Dataset.from_dict(columns, features=features)
    data_set.to_parquet(tmp_path / "t.parquet")
    for source in (data_set, tmp_path / "t.parquet"):
        (pool,) = read_tasks(source)
        assert pool.modality == "images" and len(pool.columns["label"].classes) == 2
        batch = PreparedInputs(pool, ImagePreprocessor((4, 4), 4, (0, 0, 0), (1, 1, 1))).batch(torch.tensor([0, 1]))
        assert batch[0, :, 0, 0].tolist() == [1, 0, 0] and batch[1, :, 0, 0].tolist() == [0, 0, 1]
        assert len(pool.take([5, 0])) == 2


def test_quoted_texts_with_line_breaks(tmp_path):
    values = ['He said "no", twice', "two\nlines", "x" * 300_000]
    table = write_csv(tmp_path / "t.csv", ["text", "n"], zip(values, (1, 2, 1), strict=True))
    assert read_tasks(table)[0].inputs == values
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    "cells, expected",
    (
        (["1", " 2", ""], [1, 2, None]),
        (["007", "012"], ["007", "012"]),
        (["-1", "+2", "0"], [-1, 2, 0]),
        (["1.5", "nan", "2"], [1.5, None, 2.0]),
        (["True", "FALSE", None], [True, False, None]),
        (["yes", "no"], ["yes", "no"]),
        (["1", "a"], ["1", "a"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["", None], [None, None]),
        (["9" * 30, "1"], [1e30, 1.0]),
    ),
)
def test_cells_get_the_first_type_that_fits(cells, expected):
    result = typed_cells(cells)
    assert result == expected and [type(value) for value in result] == [type(value) for value in expected]


BAD_FILES = {
    "an empty file": ("t.csv", b"", "t.csv: the file is empty"),
    "only a header": ("t.csv", b"text,label\n", "t.csv: the table has no rows"),
    "a line that is too long": ("t.csv", b"text,label\na,1\nb,2,3\n", "line 3 has 3 values, the header has 2"),
    "two columns with one name": ("t.csv", b"text,label,label\na,1,2\n", "two columns are called 'label'"),
    "another encoding": ("t.csv", "text,label\na,1\nä,2\n".encode("latin-1"), "line 3 is not UTF-8"),
    "an open quotation": ("t.csv", b'text,label\n"a,1\n', "line [23]: unexpected end of data"),
    "no JSON": ("t.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "a JSON list": ("t.jsonl", b'["a"]\n', "line 1 is a list"),
    "not Parquet": ("t.parquet", b"abc", "t.parquet: not a Parquet file"),
    "another ending": ("t.xlsx", b"abc", "the ending '.xlsx' is unknown; expected .csv"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_table_is_named(tmp_path, case):
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_tasks(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_file(tmp_path):
    as_tsv(tmp_path)
    with pytest.raises(ValueError, match="t.tvs: there is no such file or folder; did you mean .*t.tsv"):
        read_tasks(tmp_path / "t.tvs")


def test_a_frame_with_two_columns_of_one_name():
    twice = pandas.concat([frame(), frame()], axis=1)
    with pytest.raises(ValueError, match="two columns are called 'text'"):
        read_tasks(twice)


# ---- columns --------------------------------------------------------------------------------------------------------
def columns():
    return {
        "id": [f"row {row}" for row in range(ROWS)],
        "text": texts(),
        "fruit": FRUITS,
        "ripeness": [1.0, float("nan"), 2.0] * 4,
        "weight": np.linspace(0, 1, ROWS).round(1),
        "country": ["NL"] * ROWS,
        "notes": [None] * ROWS,
        "patient": [row // 3 for row in range(ROWS)],
    }


def test_all_columns_that_can_be_classes_are_labels():
    (pool,) = read_tasks(columns(), group_column="patient")
    assert list(pool.columns) == ["fruit", "ripeness"]
    assert set(pool.ignored) == {"id", "weight", "country", "notes"}
    assert pool.groups.tolist() == [row // 3 for row in range(ROWS)]


def test_a_column_whose_classes_are_groups_cannot_be_labels():
    table = columns() | {"ward": [row // 6 for row in range(ROWS)]}
    (pool,) = read_tasks(table, group_column="ward")
    assert pool.ignored["patient"] == "no two groups share a class"
    with pytest.raises(ValueError, match="no two groups share a class of 'patient'"):
        read_tasks(table, group_column="ward", label_columns=["patient"])


def test_chosen_labels():
    (pool,) = read_tasks(columns(), label_columns=["patient", "ripeness"])
    assert list(pool.columns) == ["patient", "ripeness"] and pool.groups is None and not pool.ignored
    assert not read_tasks(columns(), label_columns=[])[0].columns


def test_a_row_without_a_group_is_a_group_for_itself():
    table = {"text": texts(5), "patient": ["b", None, "a", "b", ""], "label": [0, 1, 0, 1, 0]}
    (pool,) = read_tasks(table, group_column="patient")
    assert pool.groups.tolist() == [1, 2, 0, 1, 3]


BAD_COLUMNS = {
    "a misspelt label column": (dict(label_columns=["fuit"]), "no column 'fuit' .label_columns.; did you mean 'fruit'"),
    "a misspelt text column": (dict(text_column="texts"), "no column 'texts' .text_column.; did you mean 'text'"),
    "a misspelt group column": (dict(group_column="patent"), "did you mean 'patient'"),
    "one class": (dict(label_columns=["country"]), "'country' has the single class 'NL'"),
    "no labels": (dict(label_columns=["notes"]), "all labels in 'notes' are missing"),
    "a column twice": (dict(label_columns=["fruit", "fruit"]), "'fruit' is named twice"),
    "the inputs as labels": (dict(label_columns=["text"]), "'text' cannot have labels"),
    "pictures and texts": (dict(text_column="text", image_column="id"), "both given"),
    "no texts": (dict(text_column="weight"), "row 1 is a float64, not a text"),
    "empty texts": (dict(text_column="notes"), "column 'notes': row 1 is empty"),
    "a folder for texts": (dict(images="."), "has no pictures"),
    "a folder that does not exist": (dict(images="nowhere"), "images: nowhere is not a folder"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_bad_column_is_named(case):
    settings, message = BAD_COLUMNS[case]
    with pytest.raises(ValueError, match=message):
        read_tasks(columns(), **settings)


def test_a_table_without_inputs():
    with pytest.raises(ValueError, match=r"name it with image_column or text_column \(columns: fruit\)"):
        read_tasks({"fruit": FRUITS})


def test_an_empty_text_is_named_by_its_row(tmp_path):
    table = write_csv(tmp_path / "t.csv", ["text", "label"], [["a", 1], ["  ", 2]])
    with pytest.raises(ValueError, match="t.csv, column 'text': row 2 is empty"):
        read_tasks(table)


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match="text 2, label 1"):
        read_tasks({"text": ["a", "b"], "label": [1]})


# ---- folders --------------------------------------------------------------------------------------------------------
def test_a_folder_of_pictures(tmp_path):
    paths = [picture(tmp_path / f"{number}.png") for number in (10, 2)]
    picture(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    (pool,) = read_tasks(tmp_path)
    assert pool.inputs == paths[::-1] and not pool.columns


def test_a_folder_of_classes(tmp_path):
    for name in ("cat/1.png", "cat/2.jpg", "dog/1.png", ".cache/x/1.png", "__MACOSX/cat/1.png"):
        picture(tmp_path / name)
    (pool,) = read_tasks(str(tmp_path))
    assert pool.columns["class"].values() == ["cat", "cat", "dog"]


def test_a_folder_of_tasks(tmp_path):
    for name in ("pets/cat/1.png", "pets/dog/1.png", "plants/tree/1.png", "plants/fern/1.png", "plants/fern/2.png"):
        picture(tmp_path / name)
    pets, plants = read_tasks(tmp_path)
    assert (pets.name, plants.name) == ("pets", "plants")
    assert plants.columns["class"].values() == ["fern", "fern", "tree"]


BAD_FOLDERS = {
    "no pictures": (["notes.txt"], "there are no pictures"),
    "different depths": (["a.png", "cat/1.png"], "a.png and cat/1.png lie at different depths"),
    "one class": (["cat/1.png", "cat/2.png"], "the single class 'cat'"),
    "splits": (["train/cat/1.png", "test/cat/1.png"], "splits .test, train., not tasks"),
    "too deep": (["a/b/c/1.png"], "3 folders deep|4 folders deep"),
    "an empty picture": (["cat/1.png", "dog/empty.png"], "dog/empty.png: the file is empty"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_named(tmp_path, case):
    names, message = BAD_FOLDERS[case]
    for name in names:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.stem in ("notes", "empty"):
            path.touch()
        else:
            picture(path)
    with pytest.raises(ValueError, match=message):
        read_tasks(tmp_path / "data")


def test_a_folder_has_no_columns(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match="label_columns: only a table has columns"):
        read_tasks(tmp_path, label_columns=["a"])


# ---- lists and iterables --------------------------------------------------------------------------------------------
def test_inputs_without_labels(tmp_path):
    path = picture(tmp_path / "a.png")
    image = Image.new("RGB", (3, 3))
    cases = (
        (texts(), texts(), "text"),
        ([str(path)], [path], "images"),
        ([path], [path], "images"),
        ([image], [image], "images"),
        (np.array(["a", "b"]), ["a", "b"], "text"),
        (iter(["a", "b"]), ["a", "b"], "text"),
    )
    for source, inputs, modality in cases:
        (pool,) = read_tasks(source)
        assert (pool.inputs, pool.columns, pool.modality) == (inputs, {}, modality)
    for array in (np.zeros((4, 3)), torch.zeros(4, 3)):
        assert read_tasks(array)[0].inputs is array and read_tasks(array)[0].modality == "arrays"
    assert read_tasks(["a.png"], images=tmp_path)[0].inputs == [path]
    assert read_tasks(np.zeros((2, 5, 5, 3), np.uint8))[0].modality == "images"


def test_tasks_as_pairs():
    features = np.zeros((4, 3))
    pools = read_tasks((features, labels) for labels in ([0, 1, 0, 1], ["a", None, "b", "b"]))
    assert [pool.columns["labels"].classes for pool in pools] == [(0, 1), ("a", "b")]
    assert [pool.name for pool in pools] == ["task 1", "task 2"]


def test_one_task_as_a_pair():
    (pool,) = read_tasks((torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])))
    assert len(pool) == 4 and pool.columns["labels"].classes == (0, 1)


def test_a_pair_with_several_notions():
    (pool,) = read_tasks([(texts(3), {"mood": ["+", "-", "+"], "length": [1, 2, 2]})])
    assert list(pool.columns) == ["mood", "length"]


def test_examples_as_pairs():
    (pool,) = read_tasks([(f"text {number}", number % 2) for number in range(6)])
    assert pool.inputs[5] == "text 5" and pool.columns["labels"].codes.tolist() == [0, 1] * 3


BAD_ITERABLES = {
    "nothing": ([], "there are none"),
    "a number": (7, "a int is not a table"),
    "different numbers": ([(texts(3), [0, 1])], "task 1: 3 items, but 2 labels"),
    "one class": ([(texts(2), [0, 1]), (texts(2), [1, 1])], "task 2: 'labels' has the single class 1"),
    "an empty text": (["a", ""], "row 2 is empty"),
    "a missing picture": (["a.png"], "row 1: there is no file a.png"),
}


@pytest.mark.parametrize("case", BAD_ITERABLES)
def test_bad_lists_are_named(case):
    source, message = BAD_ITERABLES[case]
    with pytest.raises(ValueError, match=message):
        read_tasks(source)


def test_a_dictionary_of_data_sets():
    datasets = pytest.importorskip("datasets")
    splits = datasets.DatasetDict({"train": as_data_set(None)})
    with pytest.raises(ValueError, match="train.*pass one of them"):
        read_tasks(splits)


def test_a_streamed_data_set():
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="streamed"):
        read_tasks(as_data_set(None).to_iterable_dataset())


# ---- pools ----------------------------------------------------------------------------------------------------------
def test_parts_of_a_pool():
    (pool,) = read_tasks(columns(), group_column="patient")
    part = pool.take([5, 0]).select_columns(["fruit"])
    assert part.inputs == [texts()[5], texts()[0]] and part.groups.tolist() == [1, 0]
    assert part.columns["fruit"].values() == ["pear", "apple"] and list(part.columns) == ["fruit"]
    with pytest.raises(ValueError, match="no label column 'fuit'; did you mean 'fruit'"):
        pool.select_columns(["fuit"])


def test_an_empty_pool():
    with pytest.raises(ValueError, match="pets: there are no items"):
        TaskPool([], name="pets")
