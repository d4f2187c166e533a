"""The page with the service itself; the library says what the right predictions are."""

from types import SimpleNamespace

import pytest

from metalora.learner import AdaptedTask
from support.page_actions import name_groups, save
from support.page_service import served
from support.serving import ServedApp, pictures, sentences, two_labels

EXAMPLES, QUERIES = 8, 4


@pytest.fixture(params=("images", "texts"))
def case(request, image_learner, text_learner, tmp_path):
    """A learner that is served, its inputs, and how the page takes them."""
    is_images = request.param == "images"
    learner, inputs = (image_learner, pictures(12)) if is_images else (text_learner, sentences(12))
    app = ServedApp(learner, tmp_path)
    with served(app.app) as address:
        yield SimpleNamespace(learner=learner, inputs=inputs, address=address, key=app.keys["a"])


def add(page, inputs):
    """Add pictures (bytes) or sentences."""
    if isinstance(inputs[0], bytes):
        files = [
            {"name": f"{place}.png", "mimeType": "image/png", "buffer": content} for place, content in enumerate(inputs)
        ]
        page.set_input_files("#picture-files", files)
    else:
        page.get_by_label("Sentences, one per line").fill("\n".join(inputs))
        page.get_by_role("button", name="Add sentences").click()
    page.locator("[role=option]").nth(len(inputs) - 1).wait_for()


def test_the_page_shows_what_the_library_predicts_and_saves_the_same_task(case, open_page, tmp_path):
    page = open_page(case, case.key)
    add(page, case.inputs)
    labels = two_labels(EXAMPLES)
    classes = sorted(set(labels))
    name_groups(page, *classes)
    for label in labels:
        page.locator("#open-list [role=option]").first.click()
        page.keyboard.press(str(1 + classes.index(label)))
    page.locator("#open-list .answer").nth(QUERIES - 1).wait_for()
    task = case.learner.adapt(case.inputs[:EXAMPLES], labels, kind="classes")
    queries = case.inputs[EXAMPLES:]
    shown = page.locator("#open-list .answer")
    assert shown.locator(".label").all_inner_texts() == task.predict(queries).tolist()
    shares = [100 * max(row) for row in task.predict_proba(queries).tolist()]
    assert [float(text.removesuffix(" %")) for text in shown.locator("span:not(.label)").all_inner_texts()] == (
        pytest.approx(shares, abs=0.6)
    )
    save(page, "stripes")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download: stripes").click()
    downloaded = AdaptedTask.from_bytes(download.value.path().read_bytes(), case.learner)
    assert downloaded.predict(queries).tolist() == task.predict(queries).tolist()
