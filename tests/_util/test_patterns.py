"""A pattern of a file is matched in a short time or refused, and those of real files are matched."""

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metalora._util.patterns import STEPS_PER_TEXT, _parse, _StepCounter, check_patterns

BLOCK = "model.language_model.layers.{}.self_attn.{}_proj"
PATHS = [BLOCK.format(layer, name) for layer in range(64) for name in "qkvo"] + [
    "lm_head",
    "model.embed_tokens",
    "",
    "decoder.block.0.layer.0.SelfAttention.q",
]
PEFT = r"(.*\.)?({})$"  # what PEFT puts around the keys of rank_pattern

REAL = {
    "names": "q_proj|v_proj",
    "a path": r"^model\.language_model\.layers\.0\.self_attn\.q_proj",
    "a group with .*": r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    "not inside": r"^(?!.*(vision|patch)).*attn\.(q|k|v|o)_proj",
    "digits": r"layers\.(\d|1\d|2[0-3])\.self_attn\.[qv]_proj",
    "counted": r"(?:.*\.)?layers\.[\d]{1,3}\.(?:self_attn|mlp)\.(?:(?:q|k|v|o|gate|up|down)_proj)",
    "lazy": r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|dense).*?(?:k_proj|v_proj|q_proj|fc1|fc2).*?)",
    "cases": r"(?i:.*\.Q_PROJ)",
    "nested": r"((model|encoder)\.)*(\w+\.)*layers\.\d+\..*",
    "behind": r".*(?<!k)_proj",
    "many paths": "|".join(map(re.escape, PATHS[:64])),
}  # fmt: skip

BOMBS = {
    "nested": "(([a-z.0-9]+)+)+!",
    "alternatives": "(a|a)*!",
    "overlap": "([a-z_.]|[a-z_.0-9]|ab|ay)+!",
    "optional": "[a-z_.0-9]?" * 60 + "!",
    "counted": "([a-z_.0-9]?){60}!",
    "lengths": "(l|la|lay|[a-z_.0-9]|[a-z_.0-9]{2})*!",
    "many stars": ".*" * 12 + "!",
    "ahead": "(?=(([a-z_.0-9]+)+)+!)m",
    "ahead again": "((?=.*.*!)|[a-z_.0-9])+!",
    "refers back": r"(.*)\1+!",
    "conditional": "(a)?(?(1)b|(.*)*)!",
    "cases": "(?i:(([A-Z.]+)_?)+)!",
    "long": "a" * 200_000,
    "deep": "(" * 5_000 + ")" * 5_000,
    "no pattern": "(",
    "closes a group": "a)|(b",
    "huge count": "(a{1,99999999999999999999})",
    "no text": 3,
}  # fmt: skip


@pytest.mark.parametrize("pattern", REAL.values(), ids=REAL)
def test_patterns_of_real_files_are_taken(pattern):
    check_patterns([pattern], PATHS, "file")
    check_patterns([pattern], PATHS, "file", PEFT)
    assert any(re.match(PEFT.format(pattern), path) for path in PATHS)  # each means some of these paths


SCRIPT = """
import json, sys
from metalora._util.patterns import check_patterns
bombs, texts, expression = json.load(sys.stdin)
for name, bomb in bombs.items():
    try:
        check_patterns([bomb], texts, "FILE: rank_pattern", expression)
        message = None
    except ValueError as error:
        message = str(error)
    print(json.dumps([name, message]), flush=True)
"""


@pytest.fixture(scope="module")
def answers():
    """Bomb -> the message that refuses it, from a process that a hang does not outlive."""
    texts = [BLOCK.format(0, "q"), "a" * 60]
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            output, _ = process.communicate(json.dumps([BOMBS, texts, PEFT]).encode(), timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return dict(map(json.loads, output.decode().splitlines()))


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_in_a_short_time(case, answers):
    assert case in answers, "the process was killed before it answered"
    assert answers[case].startswith("FILE: rank_pattern: ") and len(answers[case]) < 300


def test_many_slow_patterns_are_refused_together():
    slow = [f".*a.*b.*{number}!" for number in range(1000)]
    check_patterns(slow[:5], PATHS, "file")
    with pytest.raises(ValueError, match="file: '.*' could take too long to match"):
        check_patterns(slow, ["ab" * 100] * 100, "file")


# ---- the count against a matcher -------------------------------------------------------------------------------------
def ways_by_hand(tree, text, place):
    """All ways through a syntax tree one after another, with nothing shared: what a matcher without memory tries."""
    if not tree:
        return [place]
    (head, argument), rest = tree[0], tree[1:]
    name = str(head)
    if name == "LITERAL":
        ends = [place + 1] if place < len(text) and ord(text[place]) == argument else []
    elif name == "ANY":
        ends = [place + 1] if place < len(text) else []
    elif name == "SUBPATTERN":
        ends = ways_by_hand(list(argument[3]), text, place)
    elif name == "BRANCH":
        ends = [end for branch in argument[1] for end in ways_by_hand(list(branch), text, place)]
    elif name == "IN":
        ends = [place + 1] if place < len(text) and ord(text[place]) in [value for _, value in argument] else []
    else:
        least, most, body = argument
        ends, reached = [], [place]
        for turn in range(min(int(most), int(least) + len(text) + 1) + 1):
            ends += reached if turn >= least else []
            reached = [end for start in reached for end in ways_by_hand(list(body), text, start)]
    return [last for end in ends for last in ways_by_hand(rest, text, end)]


atoms = st.sampled_from(["a", "b", ".", "[ab]"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["?", "{0,2}", "{2}"])).map(lambda two: f"({two[0]}){two[1]}"),
        atoms.map(lambda atom: f"{atom}*"),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(patterns, st.text("ab", max_size=6))
def test_every_way_is_counted(pattern, text):
    parsed = _parse(pattern, "{}", "file")
    counter = _StepCounter(text, STEPS_PER_TEXT, False)
    ends = ways_by_hand(list(parsed), text, 0)
    assert {place: count for place, count in counter.ways(parsed, {0: 1}).items() if count} == {
        place: ends.count(place) for place in set(ends)
    }
    assert (len(text) in ends) == bool(re.fullmatch(pattern, text))
    assert counter.steps >= len(ends)
