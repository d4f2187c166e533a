"""What a person does on the page, and the pictures for it."""

import io

from PIL import Image


def picture(name, colour, size=(32, 32)):
    """A file of one colour, as a browser takes it."""
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG" if name.endswith(".png") else "JPEG")
    kind = "image/png" if name.endswith(".png") else "image/jpeg"
    return {"name": name, "mimeType": kind, "buffer": content.getvalue()}


COLOURS = {"red-1": (250, 0, 0), "blue-1": (0, 0, 250), "red-2": (220, 0, 0), "blue-2": (0, 0, 220)}


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
    """Add the pictures of `COLOURS`, and put the first two into the groups red and blue."""
    add_pictures(page)
    name_groups(page, "red", "blue")
    put(page, "red-1", 1)
    put(page, "blue-1", 2)
    item(page, "red-2.png; predicted").wait_for()


def save(page, name):
    """Save the task under a name."""
    page.get_by_label("Name of the task").fill(name)
    page.get_by_role("button", name="Save the task").click()
