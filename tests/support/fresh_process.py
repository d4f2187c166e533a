"""Fresh processes that have imported torch and nothing else, without the seconds that this takes."""

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")  # one process imports torch, and the fresh ones are its forks
SERVER.set_forkserver_preload(["torch", "torch._dynamo"])
MOST_SECONDS = 400


@dataclass(frozen=True)
class Finished:
    """How a fresh process ended: 0 or another code, what it printed, and the traceback of an error."""

    returncode: int
    stdout: str
    stderr: str


class FreshProcess:
    """A process that runs code as its main program, from now on."""

    def __init__(self, code, *arguments, **environment):
        self._pipe, end = SERVER.Pipe(duplex=False)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self._process = SERVER.Process(target=_serve, args=(end, code, list(map(str, arguments)), environment))
        self._process.start()
        end.close()

    def wait(self):
        """Wait for the end of the process, not for ever, and return how it ended."""
        finished = None
        with contextlib.suppress(EOFError):  # it was killed
            if self._pipe.poll(MOST_SECONDS):
                finished = self._pipe.recv()
            else:
                self._process.kill()
        self._process.join()
        return finished or Finished(self._process.exitcode, "", "the process was killed")


class FreshCommand:
    """A fresh process that runs `main()` of a module with arguments, and whose output is read while it runs.

    Attributes:
        out, err: What it prints, as files of text.
        pid: Its number.
    """

    def __init__(self, module, *arguments, **environment):
        out, err = SERVER.Pipe(duplex=False), SERVER.Pipe(duplex=False)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        words = list(map(str, arguments))
        self._process = SERVER.Process(target=_serve_command, args=(out[1], err[1], module, words, environment))
        self._process.start()
        self.pid = self._process.pid
        self.out, self.err = (os.fdopen(os.dup(reading.fileno())) for reading, _ in (out, err))
        for end in (*out, *err):
            end.close()

    def send_signal(self, number):
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds):
        """Wait for its end, and return the exit code."""
        self._process.join(seconds)
        return self._process.exitcode

    def close(self):
        """End it, if it still runs."""
        self._process.kill()
        self._process.join()
        self.out.close()
        self.err.close()


def run_fresh(code, *arguments, **environment):
    """Run code in a fresh process and return how it ended."""
    return FreshProcess(code, *arguments, **environment).wait()


def run_together(file, arguments, environments):
    """Run a file as the main program of several fresh processes at once and return how they ended."""
    code = Path(file).read_text()
    pairs = zip(arguments, environments, strict=True)
    running = [FreshProcess(code, *words, **environment) for words, environment in pairs]
    return [process.wait() for process in running]


def _serve_command(out, err, module, arguments, environment):
    _prepare(arguments, environment)
    for pipe, number in ((out, 1), (err, 2)):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    importlib.import_module(module).main()


def _serve(pipe, code, arguments, environment):
    _prepare(arguments, environment)
    out, status, error = io.StringIO(), 0, ""
    with contextlib.redirect_stdout(out):
        try:
            exec(compile(code, "fresh process", "exec"), {"__name__": "__main__"})
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            status, error = 1, traceback.format_exc()
    pipe.send(Finished(status, out.getvalue(), error))


def _prepare(arguments, environment):
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["fresh process", *arguments]
