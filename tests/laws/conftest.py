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
    every_cell(delta=True) selects the methods that have a Delta W, every_cell(delta=False) the bottlenecks, and
    every_cell(pair=True) the methods whose Delta W is a LoRA.
    """
    marker = metafunc.definition.get_closest_marker("every_cell")
    if marker is None:
        return
    all_pairs = metafunc.config.getoption("every_cell")
    delta, pair = marker.kwargs.get("delta"), marker.kwargs.get("pair")
    cells = {}
    for case_number, (name, case) in enumerate(CASES.items()):
        if delta is not None and case.has_delta is not delta:
            continue
        if pair is not None and case.has_pair is not pair:
            continue
        for layer_number, (kind, layer) in enumerate(LAYERS.items()):
            sample = SAMPLE_OF_GENERAL if METALORA_LAYERS[layer.kind] is AdaptedGeneralConv else SAMPLE
            in_sample = kind in ALWAYS or (layer_number + case_number) % sample == 0
            if case.fits(layer) and (all_pairs or in_sample):
                cells[f"{name}-{kind}"] = (case, layer)
    metafunc.parametrize("case, layer", cells.values(), ids=cells)
