"""The table of cases has every method."""

import metalora
from metalora.methods.registry import METHODS
from oracles.dense import BOTTLENECKS, DENSE, FEATURE_WISE
from support.cases import CASES
from support.laws import GENERATED, GOLDEN


def test_the_tables_cover_the_registry():
    """A method that nobody tests is the first thing to go wrong."""
    assert (
        {case.method for case in CASES.values()}
        == {*DENSE, *BOTTLENECKS, *FEATURE_WISE}
        == set(METHODS)
        == set(metalora.methods())
    )
    assert {row["method"] for row in GOLDEN} == set(METHODS)
    assert {case.method for case in GENERATED.values()} >= {m.name for m in METHODS.values() if m.generated}
