"""The saved tasks: predict, add examples, download, a command, delete; and names for screen readers."""

import httpx
import pytest

from support.page_actions import label_pictures, picture, save
from support.page_service import KEY
from support.serving import encoded

WITHOUT_NAME = """
    [...document.querySelectorAll("button, input, textarea, [role=listbox], [role=option], [role=toolbar]")]
        .filter((node) => node.checkVisibility())
        .filter((node) => !(node.ariaLabel || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
        .map((node) => node.outerHTML)
"""


@pytest.fixture
def page(service, open_page):
    """The page with a task that keeps its examples, and one that does not."""
    for name, keep in (("Colours", True), ("Others", False)):
        images = encoded(picture(f"{colour}.png", colour)["buffer"] for colour in ("red", "red", "blue", "blue"))
        body = {"inputs": {"images": images}, "labels": ["red", "red", "blue", "blue"], "name": name}
        headers = {"Authorization": f"Bearer {KEY}"}
        httpx.post(f"{service.address}/v1/tasks", json=body | {"keep_examples": keep}, headers=headers)
    opened = open_page(service)
    opened.locator(".task").nth(1).wait_for()
    return opened


def test_a_task_is_saved_and_listed(service, open_page):
    page = open_page(service)
    label_pictures(page)
    page.get_by_label("Keep the examples, to add more later").check()
    save(page, "Colours")
    page.locator(".task").wait_for()
    body = service.bodies("tasks")[-1]
    assert {key: body[key] for key in ("labels", "kind", "name", "keep_examples")} == {
        "labels": ["red", "red", "blue", "blue"], "kind": "classes", "name": "Colours", "keep_examples": True
    }  # fmt: skip
    assert page.locator(".task .hint").inner_text() == "blue, red: 4 examples, 93 % right, 7.1 kB"
    page.reload()
    page.get_by_role("heading", name="Colours").wait_for()


def test_a_saved_task_predicts(page):
    page.get_by_role("button", name="Predict: Colours").click()
    page.get_by_label("Pictures", exact=True).set_input_files([picture("a.png", "blue"), picture("b.png", "red")])
    page.get_by_role("button", name="Predict", exact=True).click()
    page.locator(".result").nth(1).wait_for()
    assert page.locator(".result .label").all_inner_texts() == ["blue", "red"]
    assert "a.png; predicted blue, 80 %" in page.locator("#live").inner_text()


def test_examples_are_added_to_a_task_that_keeps_them(page, service):
    page.get_by_role("button", name="Add examples: Colours").click()
    page.get_by_label("Group of these examples").fill("green")
    page.get_by_label("Pictures", exact=True).set_input_files([picture("a.png", "green")])
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("blue, green, red: 5 examples, 93 % right, 7.1 kB, version 2").wait_for()
    page.get_by_text("1 example added.").wait_for()
    assert service.bodies("tasks/t_1/examples")[0]["labels"] == ["green"]


def test_a_task_without_its_examples_takes_no_more(page):
    assert page.get_by_role("button", name="Predict: Others").count() == 1
    assert page.get_by_role("button", name="Add examples: Others").count() == 0


def test_the_file_of_a_task_is_downloaded(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download: Colours").click()
    assert download.value.suggested_filename == "Colours.safetensors"
    assert download.value.path().read_bytes() == b"the file of t_1"


def test_a_command_names_the_task_and_not_the_key(page, service):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Command: Colours").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    address = f"{service.address}/v1/tasks/t_1/predict"
    assert command == f'curl {address} -H "Authorization: Bearer $METALORA_KEY" -F images=@picture.jpg'
    assert KEY not in command


def test_a_task_is_deleted_after_a_question(page, service):
    page.get_by_role("button", name="Delete: Colours").click()
    assert len(service.tasks) == 2
    page.get_by_role("button", name="Delete it").click()
    page.get_by_role("heading", name="Colours").wait_for(state="detached")
    assert page.locator(".task h3").all_inner_texts() == ["Others"]
    assert list(service.tasks) == ["t_2"]


def test_everything_that_can_be_used_has_a_name(page):
    for name in ("Predict", "Add examples", "Delete"):
        page.get_by_role("button", name=f"{name}: Colours").click()
        assert page.evaluate(WITHOUT_NAME) == []
