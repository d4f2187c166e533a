"""Processes that load damaged files, each with a limit of its memory and without a network; a hang is ended."""

import contextlib
import random
import resource
import shutil
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.fresh_process import SERVER

HANG_SECONDS = 30  # the slowest load takes less than a tenth of a second on a free processor
MORE_MEMORY = 3 * 2**30
START_SECONDS = 300


class Network(BaseException):
    """Something asked for the network."""


def refuse_network(*_, **__):
    raise Network


def serve(pipe, seed, folder):
    """Answer (name of a kind, number of a mutation) with (mutation, verdict, words); all files are in the folder."""
    import torch

    from attack.kinds import KINDS

    torch.set_num_threads(1)
    kinds = {kind.name: kind for kind in KINDS}
    tempfile.tempdir = folder
    cases = {}
    pipe.send("ready")
    for name, number in iter(pipe.recv, None):
        if name not in cases:
            cases[name] = Case(kinds[name], Path(tempfile.mkdtemp()) / name.replace(" ", "-"))
            limit_memory()  # after the imports that the first case needs
        pipe.send(cases[name].attack(random.Random(f"{seed}/{name}/{number}")))


def limit_memory():
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


class Case:
    """A valid file of a kind, that of another owner, and the output that is right."""

    def __init__(self, kind, folder):
        import torch

        from attack.judge import judge
        from attack.kinds import X

        folder.mkdir()
        ending = f".{kind.suffix}" if kind.suffix else ""
        self.kind, self.judge, self.x = kind, judge, X
        self.valid, self.stranger, self.path = (folder / (name + ending) for name in ("valid", "stranger", "damaged"))
        for owner, path in enumerate((self.valid, self.stranger)):
            kind.write(path, owner)
        with torch.no_grad():
            self.right = kind.use(kind.model(), self.valid)
        assert judge(kind, self.valid, self.right, X) == ("same", ""), kind.name  # otherwise nothing would be judged

    def attack(self, draw, times=1):
        from attack.mutations import mutate

        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.unlink(missing_ok=True)
        if self.valid.is_dir():
            shutil.copytree(self.valid, self.path)
        else:
            shutil.copy(self.valid, self.path)
        mutation = mutate(self.path, self.stranger, draw, self.kind.seal)
        with contextlib.suppress(Exception):  # what is damaged already may not be read, and so not be changed, again
            for _ in range(1, times):
                mutation += f", {mutate(self.path, self.stranger, draw, self.kind.seal)}"
        connect, look_up = socket.socket.connect, socket.getaddrinfo
        socket.socket.connect = socket.getaddrinfo = refuse_network
        try:
            verdict, words = self.judge(self.kind, self.path, self.right, self.x)
        except Network:
            verdict, words = "network", ""
        finally:
            socket.socket.connect, socket.getaddrinfo = connect, look_up
        return mutation, verdict, words


class Worker:
    """A process, started again when it hangs or dies."""

    def __init__(self, seed, folder):
        self.seed = seed
        self.folder = folder
        self.process = None

    def start(self):
        self.pipe, end = SERVER.Pipe()
        self.process = SERVER.Process(target=serve, args=(end, self.seed, self.folder), daemon=True)
        self.process.start()
        end.close()
        assert self.pipe.poll(START_SECONDS) and self.pipe.recv() == "ready"
        self.warm = set()

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def ask(self, name, number):
        """Return (mutation, verdict, words) of a mutation."""
        if self.process is None:
            self.start()
        seconds = HANG_SECONDS if name in self.warm else START_SECONDS
        with contextlib.suppress(EOFError, ConnectionError):
            self.pipe.send((name, number))
            if self.pipe.poll(seconds):
                answer = self.pipe.recv()
                self.warm.add(name)
                return answer
            self.stop()
            return "", "hang", f"more than {seconds} seconds"
        self.stop()
        return "", "died", "the process ended"


def attack_all(cases, workers, seed):
    """Yield (name, number, mutation, verdict, words) of all cases, by several processes."""
    parts = [cases[start::workers] for start in range(workers)]

    def work(part):
        worker = Worker(seed, folder)
        try:
            return [(name, number, *worker.ask(name, number)) for name, number in part]
        finally:
            worker.stop()

    # One folder for all: a process that is killed cannot remove its own.
    with tempfile.TemporaryDirectory(prefix="attack-") as folder, ThreadPoolExecutor(workers) as pool:
        for answers in pool.map(work, parts):
            yield from answers
