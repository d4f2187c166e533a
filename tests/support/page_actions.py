"""What a person does on the page, and the pictures for it."""

import io

from PIL import Image


def picture(name, colour, size=(32, 32)):
    """A file of one colour, as a browser takes it."""
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG" if name.endswith(".png") else "JPEG")
    kind = "image/png" if name.endswith(".png") else "image/jpeg"
    return {"name": name, "mimeType": kind, "buffer": content.getvalue()}


COLOURS = {f"{name}-{number}": colour for number in (1, 2, 3) for name, colour in (("red", "#f00"), ("blue", "#00f"))}


def add_pictures(page, colours=COLOURS):
    """Add pictures of one colour each."""
    page.set_input_files("#picture-files", [picture(f"{name}.png", colour) for name, colour in colours.items()])
    item(page, list(colours)[-1]).wait_for()


def item(page, name):
    """The element of an input, whose name begins so."""
    return page.locator(f'[role=option][aria-label^="{name}"]')


def group(page, number):
    """The element of a group."""
    return page.locator(".group").nth(number - 1)


def names_in(area):
    """The names of the inputs in an area of the page, without their predictions."""
    labels = area.locator("[role=option]").evaluate_all("all => all.map(option => option.ariaLabel)")
    return [label.partition(";")[0].removesuffix(".png") for label in labels]


def name_groups(page, *names):
    """Rename the groups."""
    for number, name in enumerate(names, 1):
        page.get_by_label(f"Name of group {number}").fill(name)


def put(page, name, number):
    """Select an input and press the number of a group."""
    item(page, name).click()
    page.keyboard.press(str(number))


def label_pictures(page):
    """Add the pictures of `COLOURS`, and put all but the last two into the groups red and blue."""
    add_pictures(page)
    name_groups(page, "red", "blue")
    for number in (1, 2):
        put(page, f"red-{number}", 1)
        put(page, f"blue-{number}", 2)
    item(page, "red-3.png; predicted").wait_for()


def save(page, name):
    """Save the task under a name."""
    page.get_by_label("Name of the task").fill(name)
    page.get_by_role("button", name="Save the task").click()
