"""The files of a stranger: photos of fruit with a table of labels, and messages; for the guides and their tests."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "yellow": (230, 210, 40)}
SIDE = 32
TRAY = 3  # fruits of a tray
SUBJECTS = {"animal": ["the dog", "a cat", "my horse"], "machine": ["the engine", "a pump", "our printer"]}


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write rows as a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw_fruit(path: Path, number: int) -> dict[str, object]:
    """Draw an apple (a circle) or a pear (a square) on a noisy ground, and return its row."""
    rng = np.random.default_rng(number)
    fruit, colour = str(rng.choice(["apple", "pear"])), str(rng.choice(list(COLOURS)))
    size = str(rng.choice(["small", "large"]))
    half = 6 if size == "small" else 11
    x, y = rng.integers(half + 1, SIDE - half - 1, 2)
    picture = Image.fromarray(rng.integers(90, 160, (SIDE, SIDE, 1)).repeat(3, 2).astype("uint8"))
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if fruit == "apple" else pen.rectangle)((x - half, y - half, x + half, y + half), fill=COLOURS[colour])
    picture.save(path)
    shown_size = size if number % 5 else ""  # some labels are missing
    return {"file": path.name, "fruit": fruit, "colour": colour, "size": shown_size, "tray": number // TRAY}


def write_pictures(folder: Path, count: int) -> None:
    """Write images/, labels.csv, ripe.csv (red and yellow fruits are ripe), and inbox/ with further pictures."""
    for name in ("images", "inbox"):
        (folder / name).mkdir(parents=True)
    rows = [draw_fruit(folder / "images" / f"{number:04}.png", number) for number in range(count)]
    write_rows(folder / "labels.csv", rows)
    ripe = [{"file": row["file"], "ripe": "no" if row["colour"] == "green" else "yes"} for row in rows[: count // 2]]
    write_rows(folder / "ripe.csv", ripe)
    for number in range(1000, 1000 + count // 2):
        draw_fruit(folder / "inbox" / f"{number}.png", number)


def message(number: int) -> dict[str, object]:
    """Return a message with its labels."""
    rng = np.random.default_rng(number)
    topic, past, urgent = str(rng.choice(list(SUBJECTS))), bool(rng.integers(2)), bool(rng.integers(2))
    verb = str(rng.choice(["stopped", "moved"] if past else ["stops", "moves"]))
    text = f"{rng.choice(SUBJECTS[topic])} {verb} near the {rng.choice(['house', 'river', 'road'])}"
    tense = "past" if past else "present"
    return {
        "text": f"{text}, come at once!" if urgent else f"{text}.",
        "topic": topic,
        "tense": tense,
        "urgent": urgent,
    }


def write_messages(folder: Path, count: int) -> None:
    """Write sentences.csv (two columns of labels), urgent.csv (another one) and messages.csv (texts alone)."""
    rows = [message(number) for number in range(count)]
    write_rows(folder / "sentences.csv", [{name: row[name] for name in ("text", "topic", "tense")} for row in rows])
    write_rows(folder / "urgent.csv", [{name: row[name] for name in ("text", "urgent")} for row in rows[: count // 2]])
    write_rows(folder / "messages.csv", [{"text": message(number)["text"]} for number in range(1000, 1020)])
