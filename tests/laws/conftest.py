"""Which pairs of a method's case and a layer kind a law runs over."""

from metalora.adapters.layers import LAYERS as METALORA_LAYERS
from metalora.adapters.layers import AdaptedGeneralConv
from support.cases import CASES
from support.layers import LAYERS

ALWAYS = ("linear", "conv2d")
SAMPLE = 4  # one of so many of the other pairs
SAMPLE_OF_GENERAL = 12  # the same of convolutions that are grouped, transposed or of three axes: they share one layer


def pytest_generate_tests(metafunc):
    """Parametrise the laws marked `every_cell` by (case, layer).

    With --every-cell by all pairs; otherwise linear and conv2d for every case, and a sample of the others.
    The marker's keywords are attributes of a case that select the cases: every_cell(has_delta=True) those of the
    methods that have a Delta W.
    """
    marker = metafunc.definition.get_closest_marker("every_cell")
    if marker is None:
        return
    all_pairs = metafunc.config.getoption("every_cell")
    cells = {}
    for case_number, (name, case) in enumerate(CASES.items()):
        if any(getattr(case, field) is not value for field, value in marker.kwargs.items()):
            continue
        for layer_number, (kind, layer) in enumerate(LAYERS.items()):
            sample = SAMPLE_OF_GENERAL if METALORA_LAYERS[layer.kind] is AdaptedGeneralConv else SAMPLE
            in_sample = kind in ALWAYS or (layer_number + case_number) % sample == 0
            if case.fits(layer) and (all_pairs or in_sample):
                cells[f"{name}-{kind}"] = (case, layer)
    metafunc.parametrize("case, layer", cells.values(), ids=cells)
