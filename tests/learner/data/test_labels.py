"""Labels of any type become class numbers."""

import datetime

import numpy as np
import pandas
import pytest
import torch

from metalora.learner.data import encode_labels

CASES = {
    "texts": (["b", "a", "b"], [1, 0, 1], ("a", "b")),
    "whole numbers": ([10, 2, 10], [1, 0, 1], (2, 10)),
    "natural order": (["item 10", "item 2", "Item 1"], [2, 1, 0], ("Item 1", "item 2", "item 10")),
    "booleans": ([True, False], [1, 0], (False, True)),
    "numpy numbers": (np.array([3, 1]), [1, 0], (1, 3)),
    "numpy texts": (np.array(["x", "y"]), [0, 1], ("x", "y")),
    "numpy booleans in a list": ([np.bool_(True), np.bool_(False)], [1, 0], (False, True)),
    "numpy floats": (np.array([0.5, 0.25]), [1, 0], (0.25, 0.5)),
    "a column of an array": (np.array([[3], [1]]), [1, 0], (1, 3)),
    "a tensor": (torch.tensor([4, 4, 2]), [1, 1, 0], (2, 4)),
    "tensors in a list": ([torch.tensor(4), torch.tensor(2)], [1, 0], (2, 4)),
    "missing texts": (["a", "", None, "  ", "b"], [0, -1, -1, -1, 1], ("a", "b")),
    "missing numbers": ([1.0, float("nan"), 3.0], [0, -1, 1], (1, 3)),
    "floats of whole numbers": (np.array([1.0, 3.0]), [0, 1], (1.0, 3.0)),
    "numbers and a text": ([2, "many", 1], [1, 2, 0], (1, 2, "many")),
    "pandas": (pandas.Series(["a", None, "b"]), [0, -1, 1], ("a", "b")),
    "pandas whole numbers": (pandas.Series([1, None, 3], dtype="Int64"), [0, -1, 1], (1, 3)),
    "pandas floats": (pandas.Series([1, None, 3]), [0, -1, 1], (1, 3)),
    "pandas categories": (pandas.Series(["a", None], dtype="category"), [0, -1], ("a",)),
    "pandas booleans": (pandas.Series([True, None], dtype="boolean"), [0, -1], (True,)),
    "dates": ([datetime.date(2024, 5, 1), datetime.date(2023, 5, 1)], [1, 0], ("2023-05-01", "2024-05-01")),
    "numpy dates": (np.array(["2024-05-01", "NaT"], "datetime64[D]"), [0, -1], ("2024-05-01",)),
    "nothing": ([None, float("nan")], [-1, -1], ()),
}


@pytest.mark.parametrize("case", CASES)
def test_codes_and_classes(case):
    values, codes, classes = CASES[case]
    column = encode_labels(values)
    assert column.codes.tolist() == codes and column.codes.dtype == torch.int64
    assert column.classes == classes
    assert [type(label) for label in column.classes] == [type(label) for label in classes]


def test_values_counts_and_rows():
    column = encode_labels(["b", None, "a", "b"], "letter")
    assert column.values() == ["b", None, "a", "b"]
    assert column.counts().tolist() == [1, 2]
    assert column.take(torch.tensor([3, 1])).values() == ["b", None]


def test_known_classes_keep_their_numbers():
    assert encode_labels([2, None], classes=[3, 2, 1]).codes.tolist() == [1, -1]
    assert encode_labels(np.array([2.0]), classes=[3, 2, 1]).codes.tolist() == [1]


MISTAKES = {
    "a text and a number": (["1", 1, 2], {}, "the text '1' and the number 1 are mixed"),
    "a boolean and a number": ([True, 1], {}, "booleans and numbers are mixed"),
    "a text for a number": (["1"], {"classes": [1, 2]}, "'1' is not a class; it is a text, the class 1 is a number"),
    "a number for a text": ([1], {"classes": ["1", "2"]}, "1 is not a class; it is a number, the class '1' is a text"),
    "a boolean for a number": ([True], {"classes": [0, 1]}, "True is not a class"),
    "a misspelt class": (["rippe"], {"classes": ["raw", "ripe"]}, "did you mean 'ripe'"),
    "a list": ([["a"], ["b"]], {}, "item 1 is of the type list"),
    "several columns": (np.zeros((3, 2)), {}, r"the shape \(3, 2\)"),
    "one text": ("ripe", {}, "one text"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    values, settings, message = MISTAKES[case]
    with pytest.raises(ValueError, match=f"ripeness: .*{message}"):
        encode_labels(values, "ripeness", **settings)
