"""A browser without a window, and the page that it shows."""

from types import SimpleNamespace

import pytest

from support.browser import a_browser
from support.page_service import KEY, standin_of


@pytest.fixture(scope="module")  # not longer: playwright keeps an event loop running, which other tests could not bear
def browser():
    """A browser; the tests are skipped without one."""
    with a_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def standins():
    """A stand-in for a service of pictures, and one of texts."""
    with standin_of("images") as images, standin_of("texts") as texts:
        yield SimpleNamespace(images=images, texts=texts)


@pytest.fixture
def service(standins):
    """The stand-in of pictures."""
    standins.images.forget()
    return standins.images


@pytest.fixture
def text_service(standins):
    """The stand-in of texts."""
    standins.texts.forget()
    return standins.texts


@pytest.fixture(scope="module")
def desktop(browser):
    """A window of a desktop; every page in it has a storage of its own."""
    return browser.new_context(viewport={"width": 1280, "height": 900})


@pytest.fixture
def open_page(browser, desktop):
    """A function that opens the page of a service; errors of its scripts and breaches of its policy fail the test."""
    pages, problems = [], []

    def opened(standin, key=KEY, **settings):
        page = (browser.new_context(**settings) if settings else desktop).new_page()
        page.set_default_timeout(5000)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Policy" in message.text else None)
        page.goto(f"{standin.address}/#key={key}" if key else standin.address)
        return page

    yield opened
    for page in pages:
        page.close()
    assert not problems
