"""Law 8: torch.compile gives one graph with the outputs of eager mode."""

import pytest
import torch

from metalora import AdapterConfig, ConditionConfig, attach
from support.adapters import assert_close, randomise
from support.cases import CASES, attach_case
from support.conv_net import BODY, SOURCES, conv_net, images
from support.layers import LAYERS

COMPILED = {
    name: CASES[name]
    for name in (
        "lora",
        "lora-A",
        "multi-lora",
        "moe-lora-g",
        "metalora-cp-c",
        "metalora-tr-C",
        "metalora-square-C",
        "metalora-tr",
        "vera",
        "lokr",
        "quanta",
        "quanta-T13",
        "loretta-adp-U2",
        "film-gamma-beta",
        "cara",
        "moe-lora-task-tasks",
        "tenslora-att-qkv",
        "mtl-lora-tasks",
        "mtlora-tasks",
    )
}


CONVOLUTIONS = ("conv2d", "grouped_conv2d")


def pytest_generate_tests(metafunc):
    """Every case on linear and on one of the convolutions in turn, or with --every-cell on both."""
    if "kind" in metafunc.fixturenames:
        all_pairs = metafunc.config.getoption("every_cell")
        cells = {}
        for number, (name, case) in enumerate(COMPILED.items()):
            for kind in ("linear", *(CONVOLUTIONS if all_pairs else CONVOLUTIONS[number % 2 :][:1])):
                cells[f"{name}-{kind}"] = (case, kind)
        metafunc.parametrize("case, kind", cells.values(), ids=cells)


def test_8_compiled_is_eager_and_new_values_do_not_recompile(case, kind):
    model, adapter, x, condition = attach_case(case, LAYERS[kind])
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert_close(compiled(x, **condition), model(x, **condition))
    other, y = {"condition": case.condition(adapter, len(x))} if condition else {}, LAYERS[kind].inputs()
    assert_close(compiled(y, **other), model(y, **other))
    assert len(graphs) == 1


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_8_compiled_is_eager_when_the_condition_is_made_inside(source):
    model, x = conv_net(), images()
    config = AdapterConfig(method="metalora-tr", rank=2, targets=BODY, condition=ConditionConfig(**source, hidden=5))
    randomise(attach(model, config, example=x))
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    # 1e-6: features are float32 statistics, which the compiler may sum in another order
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)
