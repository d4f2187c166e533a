"""A frozen network whose weights are spread over two gloo processes trains as a whole one does."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig, TrainConfig, attach, fit
from support.fresh_process import run_together
from support.query_value_blocks import Network

pytest.importorskip("accelerate")
FEATURES = ConditionConfig(source="tensor", feature_size=6, scope="sample", hidden=4)
METHODS = {
    "lora": AdapterConfig("lora", rank=2, targets="query,value"),
    "metatt-4d": AdapterConfig("metatt-4d", rank=2, targets="query,value", init="ze-no-no-no"),
    "dora": AdapterConfig("dora", rank=2, targets="query,value"),  # reads the base weights
    "generated": AdapterConfig("metalora-cp", rank=2, targets="query,value", condition=FEATURES),
}


def base():
    torch.manual_seed(0)
    return Network().eval()


def trained(name, accumulate=1, sharded=False):
    """A network with an adapter after a training, and the losses."""
    network = base()
    adapter = attach(network, METHODS[name])
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for module in (*network.layers, network):
            fully_shard(module, ignored_params=set(adapter.parameters()))

    def step_loss(k):
        x = torch.randn(4, 6)
        condition = {"condition": adapter.condition(x)} if adapter.conditional else {}
        return F.cross_entropy(network(x, **condition), (x[:, 0] > 0).long())

    return network, fit(network, adapter, step_loss, TrainConfig(steps=6, lr=1e-2, accumulate=accumulate))


def refusal(function, *arguments):
    """The message of the ValueError of a call; None without one."""
    try:
        function(*arguments)
    except ValueError as error:
        return str(error)
    return None


def check_processes(rank, folder):
    """Train, save, and try to merge what is spread."""
    results = {}
    for name in METHODS:
        network, losses = trained(name, sharded=True)
        metalora.save(network, folder / f"{name} of {rank}.safetensors")
        spread = [tuple(parameter.to_local().shape) for parameter in network.layers[0].query.base.parameters()]
        results[name] = {"losses": losses, "spread": spread, "merge": refusal(metalora.merge, network)}
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes have left their files and results."""
    folder = tmp_path_factory.mktemp("sharded")
    ended = run_together(__file__, [[rank, folder] for rank in (0, 1)], [{}, {}])
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-3000:] for process in ended]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_spread_network_trains_as_a_whole_one(name, folder):
    network, losses = trained(name, accumulate=2)
    metalora.save(network, folder / "alone.safetensors")
    alone, files = (
        load_file(folder / "alone.safetensors"),
        [folder / f"{name} of {rank}.safetensors" for rank in (0, 1)],
    )
    for rank, file in enumerate(files):
        result = torch.load(folder / f"{rank}.pt")[name]
        assert result["spread"] == [(3, 6), (3,)]  # half of the rows
        torch.testing.assert_close(result["losses"], losses, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(load_file(file), alone, rtol=1e-6, atol=1e-6)
        assert result["merge"].startswith("merge: target 'layers.0.query': FSDP2 has spread its weight")
    if name != "generated":  # a merge needs one condition
        other = base()
        metalora.load(other, files[0])
        metalora.merge(other), metalora.merge(network)
        x = torch.randn(5, 6)
        torch.testing.assert_close(other(x), network(x), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_the_example_is_that_of_one_process(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers")
    example = Path(__file__).parents[2] / "examples" / "sharded_base.py"
    monkeypatch.chdir(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", example]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run([*map(str, launch)], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    two = load_file("adapter.safetensors")
    losses = runpy.run_path(str(example))["main"](accumulate=2)
    torch.testing.assert_close(load_file("adapter.safetensors"), two, rtol=1e-5, atol=1e-6)
    assert finished.stdout.count("loss") == 1 and finished.stdout == capsys.readouterr().out and losses[-1] < losses[0]


class Partitioned(nn.Linear):
    """A layer as ZeRO-3 leaves it: its weight has no numbers, and an id."""

    def __init__(self):
        super().__init__(4, 4)
        self.weight = nn.Parameter(torch.empty(0))
        self.weight.ds_id = 0


def test_a_network_that_zero_3_has_taken_apart_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), Partitioned())
    message = re.escape("DeepSpeed ZeRO-3 has taken the parameter '1.weight' apart")
    with pytest.raises(ValueError, match=f"^attach: {message}"):
        attach(model, AdapterConfig("lora", rank=2, targets="0"))
    assert type(model[0]) is nn.Linear
    head = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=f"^fit: {message}"):
        fit(model, None, lambda k: head(torch.ones(4)).sum(), TrainConfig(steps=1), extra_module=head)


if __name__ == "__main__":
    own_rank, shared = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{shared}/group", rank=own_rank, world_size=2)
    check_processes(own_rank, shared)
    torch.distributed.destroy_process_group()
