"""A Postgres server of the tests' own, in a temporary folder."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
SETTINGS = "-c listen_addresses= -c fsync=off -c shared_buffers=16MB -c max_wal_senders=0 -c wal_level=minimal"


def postgres_programs():
    """The folder of initdb and pg_ctl; None if there is none."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).parent
    return PROGRAMS[-1] if PROGRAMS else None


class PostgresServer:
    """A server that answers on a socket in its folder; Postgres refuses to run as root, so another user runs it."""

    def __init__(self):
        self.programs = postgres_programs()
        self.folder = Path(tempfile.mkdtemp(prefix="pg"))
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions", "-E", "UTF8")
        self.start()

    @property
    def url(self):
        return f"postgresql://postgres:secret-of-tests@/postgres?host={self.folder}"

    def start(self):
        self._run("pg_ctl", "-w", "-l", self.folder / "log", "-o", f"{SETTINGS} -k {self.folder}", "start")

    def stop(self):
        """Stop as in a crash: what is open is lost, and the next start recovers."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, program, *arguments):
        command = [self.programs / program, "-D", self.folder / "data", *arguments]
        subprocess.run(command, check=True, user=self._user, stdout=subprocess.DEVNULL, cwd=self.folder)
