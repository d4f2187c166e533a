"""The site builds without a warning, and no link in it is broken."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from support.site import Document, broken_addresses, pages_of

ROOT = Path(__file__).parents[2]
PACKAGES = ["metalora", "metalora.checkup", "metalora.client", "metalora.diagram", "metalora.learner"]
PACKAGES += ["metalora.integrations.peft", "metalora.serving.page", "metalora.serving.store"]
REFERENCE = {
    name: page
    for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
    for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(package):
    names = [f"{package}.{name}" for name in import_module(package).__all__]
    missing = [name for name in names if name not in REFERENCE]
    assert names and set(missing) <= {"metalora.check"}, missing  # its name in metalora.checkup is there


def test_every_name_of_the_reference_is_there_and_has_a_docstring():
    for name in REFERENCE:
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name


@pytest.mark.slow
def test_no_link_of_the_site_is_broken(site):
    assert len(pages_of(site)) > 50
    assert broken_addresses(site) == []


@pytest.mark.slow
def test_the_pages_of_the_reference_have_their_names(site):
    for name, page in REFERENCE.items():
        document = Document((site / "reference" / page.stem / "index.html").read_text())
        assert name in document.names, name


@pytest.mark.slow
def test_lists_and_examples_are_shown_as_such(site):
    for page in pages_of(site):
        text = (site / page / "index.html").read_text()
        assert not re.search(r"<p>[^<]*\n- |<p>&gt;&gt;&gt; |\|---", text), page
