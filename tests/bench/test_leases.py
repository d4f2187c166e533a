"""Leases: one holder at a time, whatever the order in which processes of several machines act, and whoever dies."""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metalora.bench import leases as leases_module
from metalora.bench.leases import SECONDS, Leases
from metalora.bench.processes import Process
from metalora.bench.renewal import Renewer

HERE = Process.this()
ELSEWHERE = dataclasses.replace(HERE, host="elsewhere", boot="another")


class Held(dict):
    """What a process holds, in the place of a `Renewer`: nothing is renewed."""

    def add(self, key, path, seconds):
        self[key] = path

    def remove(self, key):
        return self.pop(key, None)


def leases_of(folder, holder):
    """Leases as another process would have them."""
    found = Leases(folder, holder=holder)
    found._renewer = Held()
    return found


def grow_old(folder, seconds=SECONDS + 1):
    """Nobody has renewed the leases for so long."""
    for path in folder.glob("*.json"):
        then = time.time() - seconds
        os.utime(path, (then, then))


# ---- who lives -------------------------------------------------------------------------------------------------------
def test_a_lease_says_who_holds_it(tmp_path):
    assert Leases(tmp_path).take("a")
    (path,) = tmp_path.glob("*.json")
    assert path.name == "a.1.json"
    assert json.loads(path.read_text()) == dataclasses.asdict(Process.this()) | {"seconds": SECONDS}
    assert HERE.host == socket.gethostname() and HERE.pid == os.getpid()
    Leases(tmp_path).give_back("a")


@pytest.mark.skipif(HERE.boot is None, reason="this system has no identity of a boot")
def test_this_process_is_here_and_has_not_ended():
    assert HERE.is_here() and not HERE.has_ended()
    assert not dataclasses.replace(HERE, boot="the boot before").is_here()
    assert not dataclasses.replace(HERE, numbering="pid:[1]").is_here()  # a container with the name of its host


DEAD = {
    "no such process": dataclasses.replace(HERE, pid=2**22 + 1),
    "a number that was given to this process later": dataclasses.replace(HERE, started=1),
}


@pytest.mark.skipif(HERE.started is None, reason="start times come from /proc")
@pytest.mark.parametrize("holder", DEAD.values(), ids=DEAD)
def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(holder, tmp_path):
    assert leases_of(tmp_path, holder).take("a")
    with pytest.warns(UserWarning, match=f"a stale claim is taken over .process {holder.pid} on"):
        assert Leases(tmp_path).take("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.2.json"]
    Leases(tmp_path).give_back("a")


FOREIGN = {
    "another host": ELSEWHERE,
    "another boot": dataclasses.replace(HERE, boot="before", pid=2**22 + 1),
    "another container": dataclasses.replace(HERE, numbering="pid:[1]", pid=2**22 + 1),
}


@pytest.mark.parametrize("holder", FOREIGN.values(), ids=FOREIGN)
def test_the_lease_of_another_machine_is_taken_when_it_is_not_renewed(holder, tmp_path):
    assert leases_of(tmp_path, holder).take("a")
    grow_old(tmp_path, SECONDS - 5)
    assert not Leases(tmp_path).take("a")
    grow_old(tmp_path)
    with pytest.warns(UserWarning, match="stale claim"):
        assert Leases(tmp_path).take("a")
    assert not Leases(tmp_path).take("a")
    Leases(tmp_path).give_back("a")


def test_a_living_process_of_this_machine_keeps_a_lease_that_is_old(tmp_path):
    assert leases_of(tmp_path, HERE).take("a")
    grow_old(tmp_path)
    assert not Leases(tmp_path).take("a")


def test_the_clocks_of_two_machines_are_not_compared(tmp_path, monkeypatch):
    """The time of the file system counts: this machine's clock may be a day ahead."""
    assert leases_of(tmp_path, ELSEWHERE).take("a")
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert not Leases(tmp_path).take("a")


def test_the_length_of_a_lease_is_its_holders(tmp_path):
    holder = leases_of(tmp_path, ELSEWHERE)
    holder.seconds = 4 * SECONDS
    assert holder.take("a")
    grow_old(tmp_path, 2 * SECONDS)
    assert not Leases(tmp_path).take("a")


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b'{"pid": 1}', b"\xff", json.dumps({**dataclasses.asdict(HERE), "pid": "x"})]
)
def test_a_damaged_lease_is_taken_when_it_is_not_renewed(content, tmp_path):
    (tmp_path / "a.1.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert not Leases(tmp_path).take("a")
    grow_old(tmp_path)
    with pytest.warns(UserWarning, match="stale claim is taken over .unreadable"):
        assert Leases(tmp_path).take("a")
    Leases(tmp_path).give_back("a")


# ---- giving back -----------------------------------------------------------------------------------------------------
def test_names_that_begin_alike_are_different_leases(tmp_path):
    leases = Leases(tmp_path)
    assert leases.take("a") and leases.take("a.1") and leases.take("a.1.json")
    leases.give_back("a.1", for_good=True)
    assert not leases.take("a") and not leases.take("a.1.json") and leases.take("a.1")
    for name in ("a", "a.1", "a.1.json"):
        leases.give_back(name, for_good=True)
    assert not list(tmp_path.iterdir())


def test_a_lease_that_was_lost_is_not_given_back(tmp_path):
    late, other, third = (leases_of(tmp_path, dataclasses.replace(ELSEWHERE, pid=pid)) for pid in (1, 2, 3))
    assert late.take("a")
    grow_old(tmp_path)
    with pytest.warns(UserWarning, match="stale claim"):
        assert other.take("a")
    late.give_back("a")
    assert not third.take("a")
    with pytest.raises(ValueError, match="a is claimed by process 2 on elsewhere, not by this one"):
        third.give_back("a")
    other.give_back("a")
    assert third.take("a")


def test_a_number_that_is_free_again_is_no_lease(tmp_path, monkeypatch):
    """Late sees the first lease stale; before it acts, others take it over, give it back and take it again."""
    first, late, second, third = (leases_of(tmp_path, dataclasses.replace(ELSEWHERE, pid=pid)) for pid in range(4))
    assert first.take("a")
    grow_old(tmp_path)

    def after_the_others(path, content):
        monkeypatch.undo()
        with pytest.warns(UserWarning, match="stale claim"):
            assert second.take("a")
        second.give_back("a")
        assert third.take("a")
        return create_file(path, content)

    create_file = leases_module.create_file
    monkeypatch.setattr(leases_module, "create_file", after_the_others)
    assert not late.take("a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.4.json"] and late.last("a").holder.pid == 3


# ---- renewals --------------------------------------------------------------------------------------------------------
def test_a_lease_is_renewed_while_it_is_held(tmp_path):
    leases = Leases(tmp_path, seconds=0.04)
    assert leases.take("a")
    grow_old(tmp_path)
    waited = wait_until(lambda: leases.last("a").renewed > time.time() - SECONDS)
    leases.give_back("a")
    assert waited and wait_until(lambda: not leases._renewer._is_running)  # without a lease there is no thread


def wait_until(is_true, seconds=20.0):
    """Whether it becomes true within some seconds."""
    end = time.monotonic() + seconds
    while not is_true() and time.monotonic() < end:
        time.sleep(0.005)
    return is_true()


def test_a_renewer_goes_on_when_the_file_of_a_lost_lease_is_gone(tmp_path):
    renewer = Renewer()
    (tmp_path / "kept").touch()
    renewer.add(("folder", "lost"), tmp_path / "gone", 0.04)
    renewer.add(("folder", "held"), tmp_path / "kept", 0.04)
    os.utime(tmp_path / "kept", (0, 0))
    assert wait_until(lambda: (tmp_path / "kept").stat().st_mtime > 0)
    assert renewer.remove(("folder", "lost")) == tmp_path / "gone" and not (tmp_path / "gone").exists()
    assert renewer.remove(("folder", "held")) == tmp_path / "kept"
    assert renewer.remove(("folder", "held")) is None


def test_a_forked_process_holds_nothing(tmp_path):
    leases = Leases(tmp_path)
    assert leases.take("a")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if refuses_to_give_back(leases) and not leases.take("a") and leases.take("b") else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    leases.give_back("a")


def refuses_to_give_back(leases):
    try:
        leases.give_back("a")
    except ValueError:
        return True
    return False


# ---- every order of the steps ----------------------------------------------------------------------------------------
class Turns:
    """Threads that do one step at a time, in a given order."""

    def __init__(self, order):
        self.order = itertools.chain(order, itertools.cycle(range(3)))
        self.turns, self.paused = {}, threading.Semaphore(0)

    def step(self):
        """Wait for the next turn of the thread that asks; what it does until the next call is one step."""
        self.paused.release()
        self.turns[threading.get_ident()].acquire()

    def run(self, works):
        """Call all functions, each in a thread, and return when all have returned."""
        errors, running = [], {}
        for number, work in enumerate(works):
            thread = threading.Thread(target=self._work, args=(work, errors))
            running[number] = thread
            thread.start()
            self.paused.acquire()
        while running:
            number = next(self.order) % 3
            if number in running:
                self.turns[running[number].ident].release()
                self.paused.acquire()
                if running[number].ident not in self.turns:
                    running.pop(number).join()
        assert errors == []

    def _work(self, work, errors):
        self.turns[threading.get_ident()] = threading.Semaphore(0)
        self.step()
        try:
            work()
        except BaseException as error:
            errors.append(error)
        del self.turns[threading.get_ident()]
        self.paused.release()


class SteppedLeases(Leases):
    """Leases of a machine, which waits for its turn before each look at the folder and each change of it."""

    def __init__(self, folder, turns, machine):
        super().__init__(folder, holder=dataclasses.replace(ELSEWHERE, host=f"machine {machine}"))
        self._renewer, self.turns = Held(), turns

    def _numbers(self, name):
        self.turns.step()
        return super()._numbers(name)

    def _read(self, name, number):
        self.turns.step()
        return super()._read(name, number)

    def _remove_up_to(self, number, name):
        self.turns.step()
        super()._remove_up_to(number, name)


class Worker:
    """A machine that claims a run again and again, and finishes it, fails, or is not seen for longer than its lease."""

    def __init__(self, folder, turns, machine, ends):
        self.leases, self.ends = SteppedLeases(folder, turns, machine), ends
        self.is_holder = False

    def work(self, world):
        for end in self.ends:
            if "run" in world.done or not self.leases.take("run"):
                continue
            if "run" in world.done:
                self.leases.give_back("run", for_good=True)
                continue
            self.is_holder = True
            self.leases.turns.step()  # it works
            world.check()
            self._end(end, world)

    def _end(self, end, world):
        if end.startswith("late"):
            self.is_holder = False
            for path in self.leases._renewer.values():
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path, (0, 0))
            self.leases.turns.step()  # another machine may take it over now
        self.is_holder = False
        if end.endswith("finished"):
            world.done.append("run")
        self.leases.give_back("run", for_good="run" in world.done)


class World:
    def __init__(self):
        self.workers, self.done = [], []

    def check(self):
        assert sum(worker.is_holder for worker in self.workers) <= 1


ENDS = st.lists(st.sampled_from(["failed", "finished", "late, failed", "late, finished"]), min_size=1, max_size=3)


@pytest.mark.filterwarnings("ignore:.*stale claim")
@given(order=st.lists(st.integers(0, 2), max_size=60), ends=st.tuples(ENDS, ENDS, ENDS))
def test_one_process_at_a_time_holds_a_lease_in_every_order_of_the_steps(order, ends, tmp_path_factory):
    folder, turns, world = tmp_path_factory.mktemp("leases"), Turns(order), World()

    def stepped_create_file(path, content):
        turns.step()
        return create_file(path, content)

    create_file = leases_module.create_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases_module, "create_file", stepped_create_file)
        world.workers = [Worker(folder, turns, machine, ends[machine]) for machine in range(3)]
        turns.run([lambda worker=worker: worker.work(world) for worker in world.workers])
    last = leases_of(folder, ELSEWHERE)
    assert last.take("run")  # nothing that happened keeps it taken
    assert len(list(folder.iterdir())) == 1
