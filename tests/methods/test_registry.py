"""What the registry says of its methods is true, and docs/methods.md says the same."""

from pathlib import Path

import pytest

from metalora.methods.registry import METHODS
from metalora.methods.table import methods_table

ROOT = Path(__file__).parents[2]


def test_the_page_of_methods_is_up_to_date():
    assert (ROOT / "docs" / "methods.md").read_text() == methods_table()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_declaration_names_its_own_factors(method):
    assert set(method.init) == set(method.factors)
    assert {*method.generated, *method.frozen} <= set(method.factors)
    assert {*method.active_at_zero} <= {*method.factors, *method.composites}
    assert isinstance(method.replicated_over, str) or set(method.replicated_over) == set(method.factors)
    assert method.formula.startswith("ΔW") and method.source
