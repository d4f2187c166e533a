"""Run what a page of the documentation shows: its Python blocks and its commands, in order, with less work."""

import re
import shlex
from pathlib import Path

from support.command import metalora_command

DOCS = Path(__file__).parents[2] / "docs"
SMALLER = (  # a page names settings that work; a test needs the same code with less work
    (r"(MetaLearner\(.*)steps=\d{3}", r"\1steps=2, support=24, query=16"),
    (r"(metalora fit .*)--steps \d+", r"\1--steps 2 --support 24 --query 16 --report-episodes 1"),
    (r"--steps 300", "--steps 2"),
    (r"--episodes \d+", "--episodes 1"),
    (r"image_size=64", "image_size=32"),
    (r"--image-size 64", "--image-size 32"),
    (r"COUNT = 600", "COUNT = 90"),
    (r"for step in range\(200\)", "for step in range(2)"),
)


def smaller(text):
    """A block or a command with few steps on small pictures."""
    for pattern, replacement in SMALLER:
        text = re.sub(pattern, replacement, text)
    return text


def blocks_of(page):
    """(language, code) of every block of a page, which is a path below docs/."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / page).read_text(), re.S | re.M)


def run_python(code):
    """Run a block of Python as a program."""
    exec(compile(smaller(code), "block", "exec"), {"__name__": "__main__"})


def run_commands(block):
    """Run the lines of a block of a shell that call metalora; each must succeed."""
    for command in block.replace("\\\n", " ").splitlines():
        if command.startswith("metalora "):
            code, _, error = metalora_command(*shlex.split(smaller(command), comments=True)[1:])
            assert code == 0, error


def run_page(page):
    """Run a page from top to bottom, in the working directory."""
    for language, code in blocks_of(page):
        if language == "python":
            run_python(code)
        elif language == "sh":
            run_commands(code)
