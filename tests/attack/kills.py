"""Writers and trainings that are killed with SIGKILL, at a random moment or before a random operation on files."""

import hashlib
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from support.fresh_process import SERVER

KILL_FAULTS = ("lost", "torn", "leftovers")
LONGEST_WAIT = 0.05  # seconds until a kill; a save takes a few milliseconds
MOST_OPERATIONS = 60  # of one save and the next ones: open, rename, mkdir, remove, ...
FILE_OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.chmod", "shutil.rmtree")
STEPS = 40


# ---- the process that is killed --------------------------------------------------------------------------------------
def fork(work):
    """Start a process that runs work(report) and ends; return its number and the pipe that `report` writes to."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            work(lambda content: os.write(writing, content))
            os._exit(0)
        except BaseException as error:  # the parent prints it, a forked process must not go on
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    os.close(writing)
    return child, reading


def kill_before_operation(number):
    """From now on count the operations on files of this process, and kill it before one of them."""
    seen = 0

    def count(event, _):
        nonlocal seen
        if event in FILE_OPERATIONS:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def reported(child, reading, seconds):
    """Kill a process after some time (None: it kills itself, or ends), and return all that it has reported."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the writer failed"
    return content


# ---- writers ---------------------------------------------------------------------------------------------------------
def kill_writer(writer, draw, folder):
    """Kill one writer; return what was wrong afterwards, or an empty text."""
    path = folder / "x"
    writer.save(path, 1)
    operation = draw.randrange(1, MOST_OPERATIONS) if draw.random() < 0.5 else None

    def work(report):
        if operation is not None:
            kill_before_operation(operation)
        for version in range(2, 10_000):
            writer.save(path, version)
            report(b".")

    child, reading = fork(work)
    last = 1 + len(reported(child, reading, None if operation else draw.uniform(0, LONGEST_WAIT)))
    if not path.exists():
        return "lost"
    try:
        version = writer.read(path)
    except Exception as error:  # whatever a torn file makes a reader raise
        return f"torn: {type(error).__name__}: {error}"
    if version not in (last, last + 1):
        return f"lost: version {version} after {last} was saved"
    return _leftovers(writer, path, version)


def _leftovers(writer, path, version):
    """Save once more, as the next start does, and look for what the killed one left."""
    from metalora._util.files import FRESH_SECONDS

    for entry in path.parent.rglob(".*"):  # as old as it would be a minute later
        old = time.time() - 2 * FRESH_SECONDS
        os.utime(entry, (old, old), follow_symlinks=False)
    writer.save(path, version + 1)
    assert writer.read(path) == version + 1
    claims = [entry for entry in path.parent.rglob("*") if entry.suffix == ".json" and ".claims" in entry.parent.name]
    names = {entry.name for entry in path.parent.iterdir()} - {"x", "x.claims"}
    names |= {entry.name for entry in claims if entry.name.partition(".")[0] not in (str(version), str(version + 1))}
    return f"leftovers: {sorted(names)}" if names else ""


# ---- trainings -------------------------------------------------------------------------------------------------------
def train(checkpoint, report):
    """Train for some steps; return a digest of the losses and the numbers."""
    from attack.kinds import LORA, X, adapted, adapter_of
    from metalora import TrainConfig, fit

    model = adapted(LORA)
    generator = torch.Generator().manual_seed(5)
    targets = torch.randn(STEPS, *X.shape[:1], 3, generator=generator)

    def loss(step):
        report(b".")
        return (model(X) - targets[step]).square().mean()

    adapter = adapter_of(model)
    losses = fit(model, adapter, loss, TrainConfig(steps=STEPS, checkpoint_every=2), checkpoint=checkpoint)
    numbers = b"".join(adapter.factors[key].detach().numpy().tobytes() for key in sorted(adapter.factors))
    return hashlib.sha256(repr(losses).encode() + numbers).hexdigest()


def kill_training(draw, folder):
    """Kill a training three times and resume it; return what was wrong."""
    right = train(None, lambda content: None)
    path, resumed = folder / "checkpoint", 0
    for _ in range(3):
        resumed += path.exists()
        step = draw.randrange(3, STEPS // 2)

        def stopped(report, step=step):
            steps = []

            def count(content):
                steps.append(content)
                if len(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            train(path, count)

        reported(*fork(stopped), None)
    steps = []
    digest = train(path, steps.append)
    if not resumed or len(steps) >= STEPS:
        return "lost: started again"
    return "" if digest == right else "torn: resumed to other bits"


# ---- all of them -----------------------------------------------------------------------------------------------------
def serve(pipe, seed):
    """Answer the numbers of kills, with the rows of the table and what was wrong, until None comes."""
    from attack.writers import WRITERS

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # a claim that is taken over warns
    for kind, number in iter(pipe.recv, None):
        draw = random.Random(f"{seed}/{kind}/{number}")
        with tempfile.TemporaryDirectory(prefix="attack-") as folder:
            if kind == "training":
                pipe.send(("trainings, resumed to the same bits", kill_training(draw, Path(folder))))
            else:
                writer = WRITERS[number % len(WRITERS)]
                pipe.send((writer.name, kill_writer(writer, draw, Path(folder))))


def kill_all(kills, trainings, workers, seed):
    """Yield (row of the table, what was wrong) for each kill, by several processes."""
    cases = [("writer", number) for number in range(kills)] + [("training", number) for number in range(trainings)]

    def work(part):
        pipe, end = SERVER.Pipe()
        process = SERVER.Process(target=serve, args=(end, seed))
        process.start()
        end.close()
        answers = []
        for case in part:
            pipe.send(case)
            answers.append(pipe.recv())
        pipe.send(None)
        process.join()
        return answers

    with ThreadPoolExecutor(workers) as pool:
        for answers in pool.map(work, [cases[start::workers] for start in range(workers)]):
            yield from answers
