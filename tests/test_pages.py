"""The quickstarts and the tutorials run from top to bottom in an empty folder, one after the other where one goes on.

The tutorial of the service is in tests/client/test_guide.py, and the FAQ in tests/test_faq.py.
"""

import pytest

from support.doc_pages import run_page

JOURNEYS = [
    pytest.param("quickstart/images.md", "tutorials/own-pictures.md", id="pictures", marks=pytest.mark.slow),
    pytest.param("quickstart/texts.md", "tutorials/many-tasks.md", id="texts"),
    pytest.param("tutorials/combine-loras.md", None, id="loras"),
    pytest.param("tutorials/vllm.md", None, id="vllm"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "next_page"), JOURNEYS)
def test_a_journey_runs(page, next_page, tmp_path, monkeypatch):
    from metalora.learner import report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PEERS", report.PEERS[:1])
    run_page(page)
    if next_page:
        run_page(next_page)
