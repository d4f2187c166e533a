"""The site in a browser: every page loads, the search finds, both palettes are readable, and a phone shows all."""

import pytest

from support.site import pages_of

pytestmark = pytest.mark.slow
MAIN_PAGES = ["", "quickstart/images/", "choose/", "concepts/", "methods/", "reference/client/", "papers/", "faq/"]
PALETTES = ["light", "dark"]


@pytest.fixture
def watched(browser):
    """A function that opens a window; errors of a page and requests to another host end up in the list `problems`."""
    contexts = []

    def opened(address, problems, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
        page.on("console", lambda said: problems.append(f"{page.url}: {said.text}") if said.type == "error" else None)
        is_foreign = lambda url: not url.startswith((address, "data:", "blob:"))  # noqa: E731
        page.on("request", lambda asked: problems.append(f"{page.url}: {asked.url}") if is_foreign(asked.url) else None)
        return page

    yield opened
    for context in contexts:
        context.close()


def test_every_page_fits_a_phone_and_loads_without_an_error_or_another_host(site, address, watched):
    problems = []
    page = watched(address, problems, viewport={"width": 390, "height": 844})
    for path in pages_of(site):
        page.goto(f"{address}/{path}")
        if page.evaluate("document.documentElement.scrollWidth") > 390:
            problems.append(f"{path}: wider than a phone")
    assert problems == []


@pytest.mark.parametrize(
    ("words", "found"),
    [("choose a rank", "/choose/"), ("glossary", "/glossary/"), ("load_lora", "/reference/lora-files/")],
)
def test_the_search_finds(address, watched, words, found):
    page = watched(address, [])
    page.goto(f"{address}/")
    page.locator(".md-search__input").click()
    page.keyboard.type(words)
    page.locator(".md-search-result__item").first.wait_for()
    links = page.locator(".md-search-result__link").evaluate_all("all => all.slice(0, 5).map(link => link.href)")
    assert any(found in link for link in links), links


def visible_pictures(page):
    """The names of the files of the pictures that a page shows."""
    images = page.locator("article img:visible").evaluate_all("all => all.map(image => image.src)")
    return [address.rpartition("/")[2].partition("#")[0] for address in images]


def test_the_palette_is_a_choice_that_is_kept(address, watched):
    page = watched(address, [], color_scheme="light")
    page.goto(f"{address}/")
    palette = "document.body.dataset.mdColorScheme"
    assert page.evaluate(palette) == "default"
    assert visible_pictures(page) == ["how-it-works-light.svg"]
    page.get_by_title("Switch to dark colours").click()
    assert page.evaluate(palette) == "slate"
    assert visible_pictures(page) == ["how-it-works-dark.svg"]
    page.goto(f"{address}/glossary/")
    assert page.evaluate(palette) == "slate"


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("path", MAIN_PAGES)
def test_the_main_pages_are_accessible(address, watched, path, palette):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason='needs pip install "metalora[browser]"')
    page = watched(address, [], color_scheme=palette)
    page.goto(f"{address}/{path}")
    violations = axe.Axe().run(page).response["violations"]
    grave = [
        (found["id"], [node["html"][:200] for node in found["nodes"]][:3])
        for found in violations
        if found["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_the_table_of_models_has_a_filter_and_sorts(address, watched):
    page = watched(address, [])
    page.goto(f"{address}/models/")
    table = page.locator("table").nth(1)
    shown = table.locator("tbody tr:visible")
    total = shown.count()
    assert total > 600
    page.get_by_label("Filter the rows of transformers").fill("bert conv")
    assert 0 < shown.count() < total
    assert all("bert" in text and "conv" in text for text in shown.all_inner_texts())
    page.get_by_label("Filter the rows of transformers").fill("")
    numbers = "rows => rows.map(row => row.cells[3].textContent).filter(Boolean).map(Number)"
    for order in (1, -1):
        table.get_by_role("button", name="number").click()
        values = table.locator("tbody tr").evaluate_all(numbers)
        assert values == sorted(values, reverse=order < 0) and values[0] != values[-1]
