"""Keys, and what the page says when the service refuses."""

from support.page_actions import group, item, label_pictures, name_groups, names_in, put, save
from support.page_service import KEY, refusal

UNKNOWN = "The service does not know this key."


def test_the_key_of_the_link_leaves_the_address(service, open_page):
    page = open_page(service)
    page.get_by_text("timm:small, metalora-cp").wait_for()
    assert page.url == f"{service.address}/"
    assert page.evaluate("Object.values(sessionStorage)") == [KEY]
    page.reload()
    page.get_by_text("timm:small, metalora-cp").wait_for()  # the tab still has it


def test_a_wrong_key_is_refused_and_another_can_be_typed(service, open_page):
    page = open_page(service, key="ml_wrong")
    page.get_by_text(UNKNOWN).wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.insert_text(f" {KEY} ")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="1. Add pictures").wait_for()


def test_a_key_is_asked_for_and_can_be_removed(service, open_page):
    page = open_page(service, key=None)
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Open").click()
    page.get_by_role("button", name="Remove key").click()
    page.get_by_role("button", name="Open").wait_for()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_key_that_is_revoked_on_the_way_keeps_the_inputs(service, open_page):
    page = open_page(service)
    label_pictures(page)
    service.refusals["preview"] = [refusal(401, "unauthorized", "this key is not known")]
    page.get_by_label("Name of group 1").fill("scarlet")
    page.get_by_text(UNKNOWN).wait_for()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Open").click()
    item(page, "red-3.png; predicted scarlet").wait_for()
    assert names_in(group(page, 1)) == ["red-1", "red-2"]


def test_an_error_is_shown_at_its_input_and_old_predictions_go(service, open_page):
    page = open_page(service)
    label_pictures(page)
    place = "inputs.images[2]"
    service.refusals["preview"] = [refusal(422, "invalid_input", f"{place}: this file is truncated", place)]
    name_groups(page, "scarlet")
    page.get_by_role("alert").get_by_text("blue-1.png: this file is truncated").wait_for()
    assert item(page, "blue-1").locator(".error").inner_text() == "this file is truncated"
    assert page.locator("[role=option] .error").count() == 1
    assert page.locator("#open-list .answer").count() == page.locator("#accuracy .bar").count() == 0
    service.refusals["preview"] = [refusal(422, "invalid_input", "too many pixels", "queries.images[1]")]
    name_groups(page, "ruby")
    item(page, "blue-3.png; error: too many pixels").wait_for()
    name_groups(page, "crimson")
    item(page, "red-3.png; predicted crimson").wait_for()
    assert page.locator(".error:visible, .banner:visible").count() == 0


def test_a_busy_service_is_asked_again(service, open_page):
    page = open_page(service)
    label_pictures(page)
    busy = {"Retry-After": "1"}
    service.refusals["preview"] = [refusal(429, "busy", "the service is busy", **busy)]
    name_groups(page, "scarlet")
    page.get_by_text("the service is busy Trying again in 1 s.").wait_for()
    item(page, "red-3.png; predicted scarlet").wait_for()
    assert not page.locator("#banner").is_visible()


def test_a_service_that_does_not_answer_is_said_and_a_second_try_saves_once(service, open_page):
    page = open_page(service)
    label_pictures(page)
    page.route("**/v1/tasks", lambda route: (route.fetch(), route.abort()))  # saved, but the answer is lost
    save(page, "colours")
    page.get_by_text("The service does not answer. Is it running?").wait_for()
    page.unroute("**/v1/tasks")
    page.get_by_role("button", name="Save the task").click()
    page.locator(".task").wait_for()
    saves = [headers for method, path, headers, _ in service.asked if (method, path) == ("POST", "tasks")]
    keys = [headers["idempotency-key"] for headers in saves]
    assert len(keys) == 2 and keys[0] == keys[1]


def test_groups_without_a_name_are_not_left_out_of_a_task(service, open_page):
    page = open_page(service)
    label_pictures(page)
    page.get_by_role("button", name="Add a group").click()
    page.get_by_label("Name of group 3").fill("red")
    put(page, "red-3", 3)
    save(page, "colours")
    page.locator("#save-error", has_text="Give each group a name of its own.").wait_for()
    assert not service.tasks


def test_a_refused_task_is_said_at_the_form(service, open_page):
    page = open_page(service)
    label_pictures(page)
    service.refusals["tasks"] = [refusal(403, "limit_reached", "you have 1000 tasks: delete some")]
    save(page, "colours")
    page.locator("#save-error", has_text="you have 1000 tasks: delete some").wait_for()
    assert names_in(group(page, 1)) == ["red-1", "red-2"]
