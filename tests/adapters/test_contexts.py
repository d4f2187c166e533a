"""Tenants of one network are kept apart: threads, tasks, generators, nested forwards, copies, Ctrl-C; or it raises."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import io
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, merge
from support.adapters import randomise
from support.tenants import GIVEN, TENANTS, Served, X, serve_in_tasks, serve_in_threads, served_outputs

STATIC = ConditionConfig(scope="constant")


# ---- what is kept apart: each returns pairs of a tenant and its output -----------------------------------------------
async def serve(served, tenant, before, after):
    with served.block(tenant):
        await asyncio.sleep(before)
        output = served.model(X)
        await asyncio.sleep(after)
        return tenant, output


def tasks(served):
    async def both():
        return await asyncio.gather(serve(served, "A", 0.02, 0), serve(served, "B", 0.01, 0.05))

    return asyncio.run(both())


def disabled_across_await(served):
    async def both():
        return await asyncio.gather(serve(served, "A", 0.02, 0), serve(served, "base", 0.01, 0.05))

    return asyncio.run(both())


def async_generators(served):
    async def stream(tenant):
        with served.block(tenant):
            for _ in range(3):
                await asyncio.sleep(0.001)
                yield tenant, served.model(X)

    async def consume(tenant):
        return [pair async for pair in stream(tenant)]

    async def both():
        return await asyncio.gather(*(consume(tenant) for tenant in ("A", "base", "B")))

    return [pair for pairs in asyncio.run(both()) for pair in pairs]


def thread_pool(served):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(served.run, ["A", "B", "base"] * 8))


def threads_of_a_stream(served):
    """A worker thread starts with the blocks of the task that starts it, also of one in an async generator."""

    async def stream(tenant):
        with served.block(tenant):
            yield tenant, await asyncio.to_thread(served.model, X)

    async def consume(tenant):
        return [pair async for pair in stream(tenant)]

    async def both():
        return await asyncio.gather(*(consume(tenant) for tenant in ("A", "base", "B")))

    return [pair for pairs in asyncio.run(both()) for pair in pairs]


def a_task_that_outlives_the_block(served):
    async def later():
        await asyncio.sleep(0.01)
        return "A", served.model(X)

    async def both():
        with served.block("A"):
            task = asyncio.create_task(later())
        with served.block("B"):
            return [("B", served.model(X)), await task]

    return asyncio.run(both())


def wrapped_blocks(served):
    with served.tenant("A"):
        pairs = [("A", served.model(X))]
        with served.tenant("B"):
            pairs.append(("B", served.model(X)))
            with served.tenant("base"):
                pairs.append(("base", served.model(X)))
        with contextlib.ExitStack() as stack:
            stack.enter_context(served.tenant("B"))
            pairs.append(("B", served.model(X)))
        return [*pairs, ("A", served.model(X))]


def generators_that_wrap(served):
    def stream(tenant):
        for _ in range(3):
            with served.tenant(tenant):
                pair = tenant, served.model(X)
            yield pair

    return [pair for pairs in zip(stream("A"), stream("B"), stream("base"), strict=True) for pair in pairs]


def generator_inside_of_using(served):
    def stream():
        for _ in range(2):
            yield "A", served.model(X)

    with served.block("A"):
        return list(stream())


def in_a_hook(served, inner):
    """What a hook between two layers gets, and what the outer forward then returns."""
    pairs = []

    def hook(module, args):
        handle.remove()
        with contextlib.suppress(KeyboardInterrupt):
            pairs.append(inner())

    handle = served.model[1].register_forward_pre_hook(hook)
    output = served.model(X, condition=served.conditions["A"])
    return [*pairs, ("A", output)]


def nested_forward(served):
    return in_a_hook(served, lambda: ("B", served.model(X, condition=served.conditions["B"])))


def nested_using(served):
    return in_a_hook(served, lambda: served.run("B"))


def nested_disabled(served):
    return in_a_hook(served, lambda: served.run("base"))


def nested_forward_in_using(served):
    with served.block("B"):
        return in_a_hook(served, lambda: ("B", served.model(X)))


def nested_forward_that_is_stopped(served):
    def stopped():
        served.model(Stopping(), condition=served.conditions["B"])

    return in_a_hook(served, stopped)


class Stopping(torch.Tensor):
    """An input that a layer cannot read."""

    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        raise KeyboardInterrupt


KEPT_APART = [
    tasks, disabled_across_await, async_generators, thread_pool, threads_of_a_stream, a_task_that_outlives_the_block,
    wrapped_blocks, generators_that_wrap, generator_inside_of_using, nested_forward, nested_using, nested_disabled,
    nested_forward_in_using, nested_forward_that_is_stopped,
]  # fmt: skip


@pytest.mark.parametrize("case", KEPT_APART, ids=lambda case: case.__name__)
def test_every_output_is_that_of_its_tenant(case):
    served = Served()
    with torch.no_grad():
        pairs = case(served)
        assert len(pairs) >= 1
        for tenant, output in pairs:
            assert torch.equal(output, served.right[tenant]), tenant
        served.check_nothing_is_active()


# ---- what cannot be kept apart raises --------------------------------------------------------------------------------
def stream(served, tenant):
    with served.block(tenant):
        yield served.model(X)
        yield served.model(X)


def resumed_inside_of_another(served):
    first, second = stream(served, "A"), stream(served, "B")
    next(first), next(second)
    with contextlib.closing(first), contextlib.closing(second):
        next(first)


def caller_of_a_suspended_generator(served):
    with contextlib.closing(stream(served, "A")) as generator:
        next(generator)
        served.model(X)


def part_under_a_suspended_generator(served):
    with contextlib.closing(stream(served, "A")) as generator:
        next(generator)
        served.model[1](X)


def caller_of_a_suspended_generator_that_disables(served):
    with contextlib.closing(stream(served, "base")) as generator:
        next(generator)
        served.model(X, condition=served.conditions["A"])


def left_out_of_order(served):
    generator = stream(served, "A")
    next(generator)
    with served.block("B"):
        generator.close()


def async_generator_that_another_task_leaves(served):
    async def items():
        with served.block("A"):
            yield served.model(X)

    async def both():
        generator = items()
        await asyncio.create_task(anext(generator))
        await asyncio.create_task(generator.aclose())

    asyncio.run(both())


def entered_here_and_left_in_a_thread(served):
    block = served.block("A")
    block.__enter__()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(block.__exit__, None, None, None).result()
    finally:
        served.adapter.blocks = type(served.adapter.blocks)()  # here it is entered for ever


RAISES = {
    resumed_inside_of_another: "'stream' is suspended inside of using",
    caller_of_a_suspended_generator: "'stream' is suspended inside of using",
    part_under_a_suspended_generator: "'stream' is suspended inside of using",
    caller_of_a_suspended_generator_that_disables: "'stream' is suspended inside of disabled",
    left_out_of_order: "was left while a block that was entered after it is still active",
    async_generator_that_another_task_leaves: "was left by another thread or task",
    entered_here_and_left_in_a_thread: "was left by another thread or task",
}


@pytest.mark.parametrize("case", RAISES, ids=lambda case: case.__name__)
def test_what_cannot_be_kept_apart_raises(case):
    served = Served()
    with torch.no_grad():
        with pytest.raises(RuntimeError, match=RAISES[case]):
            case(served)
        served.check_nothing_is_active()
        assert torch.equal(served.run("B")[1], served.right["B"])


def test_an_explicit_condition_goes_before_a_suspended_generator():
    served = Served()
    with torch.no_grad(), contextlib.closing(stream(served, "A")) as generator:
        assert torch.equal(next(generator), served.right["A"])
        assert torch.equal(served.model(X, condition=served.conditions["B"]), served.right["B"])
        with served.block("B"):
            assert torch.equal(served.model(X), served.right["B"])
        assert torch.equal(next(generator), served.right["A"])


# ---- copies ----------------------------------------------------------------------------------------------------------
def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("inside", ["using", "disabled", "forward"])
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_takes_nothing_of_a_tenant_along(copied, inside):
    served, twin = Served(), Served()
    if inside == "forward":
        in_a_hook(served, lambda: setattr(twin, "model", copied(served.model)))
    else:
        with served.block("A" if inside == "using" else "base"):
            twin.model = copied(served.model)
    twin.adapter = twin.model[0].owner[0]
    with torch.no_grad():
        twin.check_nothing_is_active()
        assert torch.equal(twin.model(X, condition=served.conditions["B"]), served.right["B"])


# ---- what a forward leaves behind ------------------------------------------------------------------------------------
class Siblings(nn.Module):
    """Layers of one input, which a method with a shared Left computes once."""

    def __init__(self):
        super().__init__()
        names = ("query", "value")
        self.layer = nn.ModuleList(nn.ModuleDict({name: nn.Linear(16, 16) for name in names}) for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for block in self.layer:
            query = block["query"](x)
            x += 1.0  # in place: no part of x Left may be used again
            x = query + block["value"](x)
        return self.head(x)


def siblings(method):
    torch.manual_seed(0)
    model = Siblings().eval()
    adapter = attach(model, AdapterConfig(method, 2, targets="query,value", condition=STATIC))
    randomise(adapter)
    adapter.weight_first = False
    return model, adapter


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, RuntimeError])
def test_delta_after_a_stopped_forward_is_that_of_the_new_factors(error, wrapped):
    model, adapter = siblings("metatt-4d")
    if wrapped:  # as trainers do; then hooks of torch enter the forward, and Ctrl-C skips those that would leave it
        forward = model.forward
        model.forward = lambda *args: forward(*args)
    best = {name: value + 1 for name, value in model.state_dict().items()}

    def stop(*_):
        raise error

    handle = model.head.register_forward_pre_hook(stop)
    with pytest.raises(error):
        model(X.clone())
    handle.remove()
    model.load_state_dict(best, assign=True)
    with torch.no_grad():
        stale = adapter.delta("layer.0.query")
        part = model.layer[0]["query"](X)
        model(X.clone())
        assert torch.equal(stale, adapter.delta("layer.0.query"))
        assert torch.equal(part, model.layer[0]["query"](X))
    assert adapter.state.forward is None


def test_a_part_does_not_serve_the_tenant_of_a_stopped_forward():
    served = Served()
    forward = served.model.forward
    served.model.forward = lambda *args, **kwargs: forward(*args, **kwargs)

    def stop(*_):
        raise KeyboardInterrupt

    handle = served.model[2].register_forward_pre_hook(stop)
    with torch.no_grad():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                served.model(X, condition=served.conditions["A"])
        handle.remove()
        served.check_nothing_is_active()
        assert torch.equal(served.model(X, condition=served.conditions["B"]), served.right["B"])


@pytest.mark.parametrize("method", ["metatt-4d", "lotr", "vera"])
@pytest.mark.parametrize("made", ["inside", "outside"])
def test_siblings_share_nothing_of_an_input_that_changes_in_inference_mode(method, made):
    model, _ = siblings(method)
    outside = X.clone()
    with torch.no_grad():
        right = model(X.clone())
    with torch.inference_mode():
        torch.testing.assert_close(model(X.clone() if made == "inside" else outside), right, rtol=1e-5, atol=1e-5)


def test_siblings_of_another_condition_share_nothing():
    torch.manual_seed(0)
    model = Siblings().eval()
    config = AdapterConfig("metalora-cp", 2, targets="query,value", condition=GIVEN, generated=("A",))
    adapter = attach(model, config)
    randomise(adapter)
    with torch.no_grad():
        conditions = [adapter.condition(torch.randn(6, 5)) for _ in range(2)]
        block = model.layer[0]
        with adapter.using(conditions[1]):
            right = block["value"](X)
        found = []

        def hook(module, args):
            handle.remove()
            block["query"](X)
            with adapter.using(conditions[1]):
                found.append(block["value"](X))

        handle = model.head.register_forward_pre_hook(hook)
        model(X.clone(), condition=conditions[0])
    assert torch.equal(found[0], right)


@pytest.mark.parametrize("method", ["lora", "metalora-cp"])
def test_an_adapter_is_freed_with_its_model_also_after_blocks(method):
    model = nn.Sequential(nn.Linear(16, 16))
    condition = GIVEN if method == "metalora-cp" else STATIC
    adapter = attach(model, AdapterConfig(method, 2, targets="0", condition=condition))
    with adapter.disabled():
        model(X)
    if method == "metalora-cp":
        with adapter.using(adapter.condition(torch.randn(6, 5))):
            model(X)
    assert adapter.blocks.active not in contextvars.copy_context()
    freed = weakref.ref(adapter)
    del model, adapter
    gc.collect()
    assert freed() is None


# ---- a merged network is not the frozen one --------------------------------------------------------------------------
STAGES = ConditionConfig(source="stages", stages=("0",), hidden=3)
NOT_FROZEN = {
    "features": lambda model, adapter: adapter.features(X),
    "condition": lambda model, adapter: adapter.condition(X),
    "calibrate": lambda model, adapter: adapter.calibrate(X),
    "disabled": lambda model, adapter: adapter.disabled(),
}


@pytest.mark.parametrize("verb", NOT_FROZEN.values(), ids=NOT_FROZEN)
def test_a_merged_adapter_refuses_what_the_frozen_network_gives(verb):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="0", condition=STAGES))
    randomise(adapter)
    merge(model, adapter.condition(X).mean())
    with pytest.raises(ValueError, match="merged, so the frozen network cannot run"):
        verb(model, adapter)


def test_a_network_that_is_merged_inside_of_disabled_is_refused():
    model = nn.Sequential(nn.Linear(16, 16))
    adapter = attach(model, AdapterConfig("lora", 2, targets="0"))
    with adapter.disabled():
        merge(model)
        with pytest.raises(ValueError, match="target '0' is merged, so the frozen network cannot run"):
            model(X)


# ---- a condition that would have no effect ---------------------------------------------------------------------------
class Conditioned(nn.Linear):
    """A network whose own forward has an argument `condition`."""

    def forward(self, input, condition=None):
        return super().forward(input) + (0 if condition is None else condition)


def shared_factors(own_argument=False):
    """An adapter with the same factors for all, and with something to do around a forward: it cuts its stacks."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    if not own_argument:
        return layers, attach(layers, AdapterConfig("metatt-4d", 2, targets="0,1"))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.last = layers, Conditioned(16, 16)

        def forward(self, x, condition=None):
            return self.last(self.layers(x), condition)

    model = Network()
    return model, attach(model, AdapterConfig("metatt-4d", 2, targets="layers.*"))


def in_disabled(served):
    with served.adapter.disabled():
        served.model(X, condition=served.conditions["A"])


def while_merged(served):
    merge(served.model, served.conditions["A"])
    served.model(X, condition=served.conditions["A"])


IGNORED = {
    "disabled": (in_disabled, r"condition=... inside of disabled\(\), where the frozen base runs"),
    "merged": (while_merged, "merged, so a forward takes no condition"),
    "same for all": (
        lambda served: shared_factors()[0](X, condition=served.conditions["A"]),
        "no factor of this metatt",
    ),
    "no tasks, static": (
        lambda served: shared_factors()[0](X, task_ids=1),
        "task_ids=...: no factor of this metatt-4d",
    ),
    "no tasks": (lambda served: served.model(X, task_ids=1), "has no tasks|make it with adapter.condition"),
    "no condition": (lambda served: served.model(X, condition={"0.c": X}), "expected a metalora.Condition, got a dict"),
}


@pytest.mark.parametrize("call, message", IGNORED.values(), ids=IGNORED)
def test_a_condition_without_effect_is_refused(call, message):
    served = Served()
    with torch.no_grad():
        with pytest.raises(ValueError, match=message):
            call(served)
    assert served.adapter.state.forward is None and served.adapter.current().enabled


def test_task_ids_of_a_batch_do_not_stop_the_frozen_base():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        right = model(X)
        adapter = attach(model, AdapterConfig("metatt-4+1d", 2, targets="0,1", tasks=3))
        randomise(adapter)
        with adapter.disabled():
            assert torch.equal(model(X, task_ids=[0, 2]), right)
        with adapter.running_frozen():
            assert torch.equal(model(X, task_ids=1, condition=adapter.task(1)), right)


def test_an_argument_that_the_model_has_itself_goes_to_the_model():
    model, adapter = shared_factors(own_argument=True)
    own = torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(X, condition=own), model(X) + own)


# ---- many tenants ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("serving", [serve_in_threads, serve_in_tasks])
def test_sixty_four_tenants_of_one_model(serving):
    assert serving(Served(TENANTS), 8, 20) == 8 * 20


@pytest.mark.slow
def test_ten_thousand_forwards_of_sixty_four_tenants(capsys):
    speeds = {}
    for name, right, speed in served_outputs(10_000):
        assert right == 10_000
        speeds[name] = speed
    with capsys.disabled():
        print("\n" + "\n".join(f"{name}: {speed:.0f} forwards per second" for name, speed in speeds.items()))
