"""Files and folders that a command line must refuse, beside the right ones; for the tables of wrong inputs."""

import csv
import os
import socket
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from support.command import write_resnet_adapter

COLOURS = {"red": (220, 40, 40), "blue": (50, 80, 220)}


def write_csv(path: Path, header: list[str], rows: list[list[object]]) -> None:
    """Write a table."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_pictures(folder: Path, count: int) -> list[list[object]]:
    """Write pictures of one colour each into the folder; return a row for each: its file, its colour, its number."""
    folder.mkdir()
    rows: list[list[object]] = []
    for number in range(count):
        colour = list(COLOURS)[number % 2]
        noise = np.random.default_rng(number).integers(0, 30, (32, 32, 3))
        Image.fromarray((np.array(COLOURS[colour]) + noise - 30).clip(0, 255).astype("uint8")).save(
            folder / f"{number}.png"
        )
        rows.append([f"{number}.png", colour, number % 3])
    return rows


def write_tables(folder: Path) -> None:
    """Write pictures, the table good.csv of their labels, and tables that cannot be read or used."""
    rows = write_pictures(folder / "images", 24)
    write_csv(folder / "good.csv", ["file", "colour"], [row[:2] for row in rows])
    write_csv(folder / "two-labels.csv", ["file", "colour", "number"], rows)
    write_csv(folder / "one-label.csv", ["file", "colour"], [[row[0], "red"] for row in rows])
    write_csv(folder / "no-labels.csv", ["file"], [row[:1] for row in rows])
    write_csv(folder / "no-rows.csv", ["file", "colour"], [])
    write_csv(folder / "lost-files.csv", ["file", "colour"], [[f"lost-{row[0]}", row[1]] for row in rows])
    write_csv(folder / "twice.csv", ["file", "file"], [row[:2] for row in rows])
    write_csv(
        folder / "texts.csv",
        ["text", "colour"],
        [[f"number {row[2]} is a text about {row[1]} things", row[1]] for row in rows],
    )
    write_csv(folder / "large.csv", ["file", "colour"], [[f"{number:06}.png", "red"] for number in range(12_000)])
    (folder / "empty.csv").write_text("")
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    (folder / "wide-row.csv").write_text("file,colour\n0.png,red,3\n")
    (folder / "no-objects.jsonl").write_text("[1]\n[2]\n")
    (folder / "no-json.jsonl").write_text("{\n")
    (folder / "no-parquet.parquet").write_text("text")
    (folder / "no-images").mkdir()
    for number in range(12):
        (folder / "no-images" / f"{number}.png").write_text("no picture")
    write_csv(folder / "no-images.csv", ["file", "colour"], [[row[0], row[1]] for row in rows[:12]])


def write_other_files(folder: Path) -> None:
    """Write damaged files, files of other kinds, and empty ones."""
    (folder / "notes.txt").write_text("notes\n")
    (folder / "empty-folder").mkdir()
    (folder / "full-folder").mkdir()
    (folder / "full-folder" / "notes.txt").write_text("mine")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "broken.safetensors").write_bytes(b"no adapter")
    save_file({"weight": torch.zeros(3, 4)}, folder / "plain.safetensors")
    os.mkfifo(folder / "pipe")


def write_adapters(folder: Path) -> None:
    """Write adapters of resnet10t, a truncated one, a generated one with conditions, and a LoRA in PEFT's format."""
    import timm

    import metalora

    write_resnet_adapter(folder)
    content = (folder / "adapter.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    for rank in (2, 3):
        model = timm.create_model("resnet10t", pretrained=False)
        condition = metalora.ConditionConfig(source="tensor", feature_size=4, scope="support", hidden=4)
        config = metalora.AdapterConfig("metalora-cp", rank, targets="layer1.0.conv1", condition=condition)
        adapter = metalora.attach(model, config)
        adapter.save(folder / f"generated-{rank}.safetensors")
        adapter.condition(torch.rand(5, 4), torch.tensor([0, 1, 0, 1, 0])).save(
            folder / f"condition-{rank}.safetensors"
        )
    model = timm.create_model("resnet10t", pretrained=False)
    metalora.attach(model, metalora.AdapterConfig("lora", 2, targets="layer1.0.conv1")).export_lora(folder / "lora")
    metalora.detach(model)


def write_learner(folder: Path) -> None:
    """Write a learner without an adapter, a task of it, and folders of a learner and a task that are damaged."""
    from metalora.learner import MetaLearner

    learner = MetaLearner("efficientnet-lite0", image_size=32, adapter=None)
    learner.fit(folder / "good.csv", images=folder / "images", report=False)
    learner.save_pretrained(folder / "learner")
    files = [folder / "images" / f"{number}.png" for number in range(24)]
    learner.adapt(files, [number % 2 for number in range(24)]).save_pretrained(folder / "task")
    for name in ("learner", "task"):
        damaged = folder / f"damaged-{name}"
        damaged.mkdir()
        (damaged / f"{name}.json").write_text("{")


def write_inputs(folder: Path) -> socket.socket:
    """Write all of them; return a socket that listens at a port, the number of which is in the file "port"."""
    for write in (write_tables, write_other_files, write_adapters, write_learner):
        write(folder)
    listening = socket.create_server(("127.0.0.1", 0))
    (folder / "port").write_text(str(listening.getsockname()[1]))
    return listening
