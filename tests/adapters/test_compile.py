"""A model of transformers under torch.compile: one graph with its hooks, whatever the task ids and the condition."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from metalora import AdapterConfig, ConditionConfig, attach

transformers = pytest.importorskip("transformers")

STEM = ConditionConfig(source="stem", stem="embeddings")


@pytest.mark.parametrize("method, options", [("metatt-4d", {}), ("metatt-4+1d", {"tasks": 3}), ("metalora-cp", {})])
def test_one_graph_with_the_hooks(method, options):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=2, vocab_size=50)
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    ids = torch.arange(12).reshape(2, 6)
    condition = STEM if method == "metalora-cp" else ConditionConfig(scope="constant")
    config = AdapterConfig(method, 2, targets="query,value", condition=condition, **options)
    adapter = attach(model, config, example={"input_ids": ids})
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.5)
    calls = [{"input_ids": ids}, {"input_ids": ids + 1}]
    if options:
        calls = [{**calls[0], "task_ids": torch.tensor(tasks)} for tasks in ([0, 0], [2, 1], [1, 1])]
    seen = CompileCounter()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(wrap_top_frame=True):
        compiled = torch.compile(model, fullgraph=True, backend=seen)
        found = [compiled(**call).last_hidden_state for call in calls]
    assert seen.frame_count == 1
    for call, one in zip(calls, found, strict=True):
        torch.testing.assert_close(one, model(**call).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert (found[0] - found[1]).abs().max() > 1e-3
