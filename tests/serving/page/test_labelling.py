"""From pictures or sentences to predictions, by mouse, keys and taps."""

import base64
import io

import pytest
from PIL import Image

from support.page_actions import COLOURS, add_pictures, group, item, label_pictures, name_groups, names_in, picture, put

EVIL = "<img src=x onerror=window.harm=1>"
GIVE_FILE = """(node, event) => {
    const gif = "R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs=";
    const bytes = Uint8Array.from(atob(gif), (character) => character.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], "given.gif", { type: "image/gif" }));
    const given = event === "drop"
        ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true });
    node.dispatchEvent(given);
}"""


def test_the_others_are_predicted_and_again_after_a_pause_in_typing(service, open_page):
    page = open_page(service)
    label_pictures(page)
    assert names_in(page.locator("#open-list")) == ["red-3", "blue-3"]
    assert item(page, "red-3").locator(".answer").inner_text().split() == ["red", "80", "%"]
    nearest = item(page, "blue-3").locator(".neighbours > [title]").evaluate_all("all => all.map(near => near.title)")
    assert nearest == ["blue", "blue", "red"]
    assert page.locator("#accuracy .bar").all_inner_texts() == ["Adapted network\n93 %", "Frozen network\n81 %"]
    body = service.bodies("preview")[-1]
    assert body["labels"] == ["red", "red", "blue", "blue"]
    assert [len(body[part]["images"]) for part in ("inputs", "queries")] == [4, 2]
    asked = len(service.bodies("preview"))
    page.get_by_label("Name of group 1").press_sequentially("scarlet", delay=5)
    page.locator("#open-list .label", has_text="scarlet").wait_for()
    assert len(service.bodies("preview")) == asked + 1


def test_what_is_unlike_the_examples_is_marked(service, open_page):
    page = open_page(service)
    label_pictures(page)
    page.get_by_text("From 9 examples on, inputs unlike them are marked.").wait_for()
    page.set_input_files("#picture-files", [picture("white.png", "white")])
    item(page, "white.png; predicted").wait_for()
    assert page.locator(".unlike").count() == 0  # of four examples, one in five may lie as far by chance
    page.set_input_files("#picture-files", [picture(f"{number}.png", "red") for number in range(5)])
    for number in range(5):
        put(page, f"{number}.png", 1)
    item(page, "white.png").locator(".unlike").wait_for()
    assert item(page, "red-3").locator(".unlike").count() == 0


def test_the_keyboard_alone_labels(service, open_page):
    page = open_page(service)
    add_pictures(page)
    page.locator("#save-form input").first.focus()
    item(page, "red-1").focus()
    page.keyboard.press("1")  # without a selection: what has the focus
    assert page.evaluate("document.activeElement.ariaLabel") == "blue-1.png"
    page.keyboard.press("Space")
    page.keyboard.press("End")
    page.keyboard.press("Space")
    page.keyboard.press("2")
    assert names_in(group(page, 2)) == ["blue-1", "blue-3"]
    assert page.locator("#live").inner_text() == "2 inputs put into group 2."
    page.keyboard.press("Home")
    page.keyboard.press("1")
    assert names_in(group(page, 1)) == ["red-1", "red-2"]
    item(page, "red-3.png; predicted group 1").wait_for()
    page.keyboard.press("Delete")
    assert names_in(page.locator("#open-list")) == ["red-3"]


def test_shift_and_arrows_extend_the_selection(service, open_page):
    page = open_page(service)
    add_pictures(page)
    item(page, "red-1").focus()
    for _ in range(2):
        page.keyboard.press("Shift+ArrowRight")
    assert page.locator("[aria-selected=true]").count() == 3
    page.keyboard.press("Escape")
    assert page.locator("[aria-selected=true]").count() == 0


def test_a_number_in_a_field_labels_nothing(service, open_page):
    page = open_page(service)
    add_pictures(page)
    item(page, "red-1").click()
    page.get_by_label("Name of group 1").press_sequentially("12")
    assert names_in(page.locator("#open-list")) == list(COLOURS)


def test_items_are_dragged_into_groups_and_back(service, open_page):
    page = open_page(service)
    add_pictures(page)
    item(page, "blue-1").drag_to(group(page, 2))
    assert names_in(group(page, 2)) == ["blue-1"]
    item(page, "blue-1").drag_to(page.locator("#open-title"))
    assert names_in(group(page, 2)) == []


def test_taps_on_a_phone_label_and_nothing_is_wider_than_the_screen(service, open_page):
    page = open_page(service, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    add_pictures(page, {"red-1": "red", "a-very-long-name-" * 20: "blue"})
    page.get_by_label("Name of group 1").fill("long" * 25)
    item(page, "red-1").tap()
    page.locator(".group .count").first.tap()
    assert names_in(group(page, 1)) == ["red-1"]
    item(page, "a-very").tap()
    page.get_by_role("toolbar").get_by_role("button", name="2 group 2").tap()
    assert names_in(group(page, 2)) == ["a-very-long-name-" * 20]
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_large_pictures_are_made_small_before_they_are_sent(service, open_page):
    page = open_page(service)
    page.set_input_files("#picture-files", [picture("wide.jpg", "red", (2000, 1000)), picture("b.png", "blue")])
    add_pictures(page)
    for name, number in (("wide", 1), ("red-1", 1), ("b.png", 2), ("blue-1", 2)):
        put(page, name, number)
    page.locator("#accuracy .bar").first.wait_for()
    sent = [base64.b64decode(image) for image in service.bodies("preview")[-1]["inputs"]["images"]]
    assert Image.open(io.BytesIO(sent[0])).size == (512, 256)
    assert sent[2] == picture("b.png", "blue")["buffer"]  # a small one is sent as it is


def test_the_folders_of_a_folder_become_groups(service, open_page, tmp_path):
    for name, colour in (("cats", "red"), ("dogs", "blue"), ("", "green")):
        (tmp_path / "pets" / name).mkdir(exist_ok=True, parents=True)
        for file in ("x.png", "y.png"):
            (tmp_path / "pets" / name / file).write_bytes(picture(file, colour)["buffer"])
        (tmp_path / "pets" / name / "notes.txt").write_text("no picture")
    page = open_page(service)
    page.set_input_files("#picture-folder", tmp_path / "pets")
    item(page, "x.png; predicted").wait_for()
    names = [page.get_by_label(f"Name of group {number}").input_value() for number in (1, 2)]
    assert sorted(names) == ["cats", "dogs"]
    assert names_in(group(page, 1)) == names_in(group(page, 2)) == ["x", "y"]


def test_a_file_that_is_no_picture_is_named(service, open_page):
    page = open_page(service)
    page.set_input_files("#picture-files", [{"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"}])
    page.get_by_text("broken.png is not a picture that this browser can read.").wait_for()


def test_sentences_are_taken_one_per_line(text_service, open_page):
    page = open_page(text_service)
    page.get_by_label("Sentences, one per line").fill(f"aaax\n\n  bbbx  \r\naaay\nbbby\naaaz\n{EVIL}")
    page.get_by_role("button", name="Add sentences").click()
    for name, number in (("aaax", 1), ("aaay", 1), ("bbbx", 2), ("bbby", 2)):
        put(page, name, number)
    item(page, "aaaz; predicted group 1").wait_for()
    assert text_service.bodies("preview")[-1]["inputs"] == {"texts": ["aaax", "aaay", "bbbx", "bbby"]}
    assert text_service.bodies("preview")[-1]["queries"] == {"texts": ["aaaz", EVIL]}


def test_markup_in_names_and_sentences_is_shown_as_text(text_service, open_page):
    page = open_page(text_service)
    page.get_by_label("Sentences, one per line").fill(f"aaax\naaay\nbbbx\nbbby\n{EVIL}")
    page.get_by_role("button", name="Add sentences").click()
    name_groups(page, EVIL)
    for sentence, number in (("aaax", 1), ("aaay", 1), ("bbbx", 2), ("bbby", 2)):
        put(page, sentence, number)
    page.get_by_text(EVIL, exact=True).first.wait_for()
    page.locator("#open-list .answer").first.wait_for()
    item(page, "bbbx").click()
    assert page.get_by_role("toolbar").get_by_role("button").first.inner_text() == f"1 {EVIL}"
    assert page.locator("[src=x]").count() == 0
    assert page.evaluate("window.harm") is None


def test_names_of_groups_must_be_there_and_differ(service, open_page):
    page = open_page(service)
    label_pictures(page)
    name_groups(page, "red", "red")
    page.get_by_text("Another group has this name.").wait_for()
    name_groups(page, "")
    page.get_by_text("Give the group a name.").wait_for()
    page.get_by_text("Shown as soon as two groups have examples.").wait_for()
    assert page.locator("#open-list .answer").count() == 0


def test_a_group_of_one_example_waits_for_another(service, open_page):
    page = open_page(service)
    label_pictures(page)
    put(page, "red-2", 2)
    group(page, 1).get_by_text("One more example is needed.").wait_for()
    page.get_by_text("Put two inputs or more into each of two groups.").wait_for()
    assert page.locator("#open-list .answer").count() == 0
    assert len(set(service.bodies("preview")[-1]["labels"])) == 2  # no request has a single group


def test_a_removed_group_gives_its_inputs_back(service, open_page):
    page = open_page(service)
    label_pictures(page)
    page.get_by_role("button", name="Remove group red").click()
    assert sorted(names_in(page.locator("#open-list"))) == ["blue-3", "red-1", "red-2", "red-3"]


@pytest.mark.parametrize("event", ("drop", "paste"))
def test_files_are_dropped_and_pasted(service, open_page, event):
    page = open_page(service)
    page.get_by_role("heading", name="1. Add pictures").wait_for()
    group(page, 2).locator(".count").evaluate(GIVE_FILE, event)
    item(page, "given.gif").wait_for()
    assert names_in(group(page, 2)) == (["given.gif"] if event == "drop" else [])
