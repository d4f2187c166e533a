"""The progress bar of a notebook: without widgets, one piece of HTML that is replaced."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from metalora._util import notebook_progress
from metalora._util.progress import progress_bar


@pytest.fixture
def cell(monkeypatch):
    """The HTML that a cell shows, one piece after another, in a process that seems to be the kernel of a notebook."""
    shown = []
    shell, display, package = SimpleNamespace(kernel=object()), ModuleType("IPython.display"), ModuleType("IPython")
    package.get_ipython = lambda: shell
    display.HTML = str
    display.display = lambda html, display_id: shown.append(html) or SimpleNamespace(update=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return shown


def test_a_notebook_shows_the_bar_below_its_cell_and_nothing_on_standard_error(cell, capsys):
    with progress_bar(2, "training") as advance:
        advance(1, "loss <0.5>")
        advance(2)
    assert 'value="0" max="2"' in cell[0] and 'value="2" max="2"' in cell[-1]
    assert cell[-1].startswith("training <progress") and capsys.readouterr() == ("", "")


def test_a_note_cannot_put_a_tag_into_the_page():
    assert "loss &lt;b&gt;" in notebook_progress.bar_as_html("training", 1, 2, 1.0, "loss <b>")


def test_it_is_drawn_four_times_a_second_at_most(cell):
    with notebook_progress.notebook_bar(1000, "training", seconds_between=60.0) as advance:
        for step in range(1000):
            advance(step + 1)
    assert len(cell) == 2 and 'value="1000"' in cell[-1]


def test_nothing_of_the_bar_stays_next_to_an_error(cell):
    with pytest.raises(ValueError, match="wrong"), progress_bar(2, "training"):
        raise ValueError("wrong")
    assert cell[-1] == ""


def test_a_hidden_bar_shows_nothing(cell):
    with progress_bar(2, "training", hidden=True) as advance:
        advance(2)
    assert cell == []


def test_a_terminal_with_ipython_is_no_notebook(monkeypatch):
    package = ModuleType("IPython")
    package.get_ipython = lambda: SimpleNamespace()
    monkeypatch.setitem(sys.modules, "IPython", package)
    assert not notebook_progress.in_notebook()


CELL = """
from metalora._util.progress import progress_bar
with progress_bar(3, "training") as advance:
    for step in range(3):
        advance(step + 1, f"loss {step}")
"""


@pytest.mark.slow
def test_a_real_kernel_shows_it():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client.NotebookClient(notebook, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert [output.output_type for output in outputs] == ["display_data"]
    assert 'value="3" max="3"></progress> 3/3, loss 2' in outputs[0].data["text/html"]
