"""The quickstarts and the tutorials run from top to bottom in an empty folder, one after the other where one goes on.

The tutorial of the service is in tests/client/test_guide.py, and the FAQ in tests/test_faq.py.
"""

import pytest

from support.pages import run_page

JOURNEYS = {
    "pictures": ("quickstart/images.md", "tutorials/own-pictures.md"),
    "texts": ("quickstart/texts.md", "tutorials/many-tasks.md"),
    "loras": ("tutorials/combine-loras.md",),
    "vllm": ("tutorials/vllm.md",),
}


@pytest.mark.parametrize("pages", JOURNEYS.values(), ids=JOURNEYS)
def test_a_journey_runs(pages, tmp_path, monkeypatch):
    from metalora.learner import report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PEERS", report.PEERS[:1])
    for page in pages:
        run_page(page)
