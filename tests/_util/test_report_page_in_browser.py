"""A page in a browser: it sorts by mouse and keyboard, asks no other host, fits a phone, and can be read by all."""

import pytest

from metalora._util.report_page import (
    Band,
    Html,
    Interval,
    Order,
    Section,
    Series,
    confusion_table,
    fact_table,
    interval_cells,
    joined,
    line_chart,
    number_cell,
    reliability_chart,
    sortable_table,
    text_cell,
    write_page,
)
from support.browser import a_browser

SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def browser():
    """A browser; the tests are skipped without one."""
    with a_browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a page with every part that there is."""
    marks = interval_cells([Interval(0.5, 0.4, 0.6, "50 ± 10"), Interval(0.9, 0.8, 1.0, "90 ± 10")])
    names, missing = ["lora <b>", "metalora-cp"], [number_cell(1200, "1,200"), number_cell(float("nan"), "–")]
    numbers = [*([text_cell(f"other {n}"), number_cell(n / 100, f"{n}"), number_cell(n, f"{n}")] for n in range(12))]
    rows = [[text_cell(name), mark, size] for name, mark, size in zip(names, marks, missing, strict=True)]
    wide = [[text_cell("a task"), *(number_cell(n, f"{n}") for n in range(30))]]
    series = [Series(f"line {n}", [(0, n), (10, n + 1)]) for n in range(9)]
    parts = {
        "Methods": sortable_table("methods", ("method", "accuracy", "parameters"), rows, Order(1, rising=True), [1]),
        "Numbers": sortable_table("numbers", ("name", "share", "count"), numbers),
        "Wide": sortable_table("wide", ("task", *(f"column {n}" for n in range(30))), wide),
        "Curves": line_chart("Loss over steps", series, "steps", "loss"),
        "Calibration": reliability_chart("Reliability", [Band(0.5, 0.6, 4, 0.55, 0.5)], [Band(0.5, 0.6, 4, 0.58, 0.5)]),
        "Confusion": confusion_table("confusion", ("a", "b", "c"), [[9, 1, 0], [3, 5, 2], [0, 0, 7]]),
        "Settings": fact_table("settings", {"a.long.name": "x" * 300}),
    }
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, "A report", "It works.", [Section(name, "A note.", body) for name, body in parts.items()])
    return path.as_uri()


@pytest.fixture
def open_page(browser, address):
    """A function that opens the page; errors, breaches of its policy and requests to a host fail the test."""
    pages, problems = [], []

    def opened(**settings):
        page = browser.new_context(**settings).new_page()
        page.set_default_timeout(5000)
        pages.append(page)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
        page.goto(address)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert not problems


def column(page, caption, number):
    """The text of a column of a table."""
    return page.evaluate(
        """([caption, number]) => [...[...document.querySelectorAll("table")]
        .find(table => table.caption.textContent === caption).tBodies[0].rows]
        .map(row => row.cells[number].textContent)""",
        [caption, number],
    )


def test_a_click_sorts_and_says_so(open_page):
    page = open_page()
    heading = page.get_by_role("columnheader", name="accuracy")
    assert heading.get_attribute("aria-sort") == "ascending"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, "methods", 0) == ["metalora-cp", "lora <b>"]
    assert page.locator("tr.ours").inner_text().startswith("metalora-cp")


def test_the_keyboard_sorts_numbers_as_numbers(open_page):
    page = open_page()
    button = page.get_by_role("columnheader", name="count").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, "numbers", 2) == [str(number) for number in reversed(range(12))]
    page.keyboard.press("Space")
    assert column(page, "numbers", 2) == [str(number) for number in range(12)]


def test_a_missing_number_is_last_in_both_orders(open_page):
    page = open_page()
    button = page.get_by_role("columnheader", name="parameters").get_by_role("button")
    for _ in range(2):
        button.click()
        assert column(page, "methods", 2) == ["1,200", "–"]


def test_a_phone_shows_all_without_scrolling_the_page_sideways(open_page):
    page = open_page(viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("svg.chart").first.bounding_box()["width"] <= 390
    wide = page.get_by_role("region", name="wide")
    assert wide.evaluate("element => element.scrollWidth > element.clientWidth")


def test_light_and_dark_differ_and_paper_is_light(open_page):
    page = open_page(color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(21, 25, 30)"
    page.emulate_media(media="print")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_nothing_serious_is_found_by_axe(open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    found = axe.Axe().run(open_page(color_scheme=scheme)).response["violations"]
    assert not [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in SERIOUS]


def test_a_script_of_someone_else_does_not_run(browser, tmp_path):
    path = tmp_path / "evil.html"
    body = joined([Html("<script>document.title = 'evil'</script><img src=x onerror=\"document.title = 'evil'\">")])
    write_page(path, "A report", "", [Section("Part", "", body)])
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_timeout(200)
    assert page.title() == "A report"
    page.close()
