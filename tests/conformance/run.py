"""PEFT's own tests against this library's tuner: fetch them, run them family by family, account for every failure.

    python tests/conformance/run.py [--peft=VERSION] [FAMILY ...] [PYTEST OPTIONS]

The tests are those of the installed PEFT, from its source distribution, which stays in the cache. With `--peft` they
are those of VERSION, which then replaces the installed PEFT. The exit code is 1 if a test fails for which
expected_failures.yaml gives no reason, or if a test passes for which it gives one.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "conformance"
MESSAGE_LENGTH = 200  # characters of a failure's message that are printed


def fetch(version: str) -> Path:
    """Return the unpacked source distribution of PEFT, from the package index if it is not in the cache."""
    folder = CACHE / f"peft-{version}"
    if not (folder / "tests").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", f"peft=={version}", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(CACHE)]
        subprocess.run(command, check=True)
        with tarfile.open(CACHE / f"peft-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    (folder / "tests" / "__init__.py").touch()  # its modules import one another relatively
    return folder


def library_paths(version: str) -> list[str]:
    """Return the import path of PEFT of a version, installed into the cache; none for the installed version."""
    if version == importlib.metadata.version("peft"):
        return []
    folder = CACHE / f"library-{version}"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(folder), f"peft=={version}"]
        subprocess.run(command, check=True)
    return [str(folder)]


def run(
    folder: Path, family: str, files: list[str], pytest_options: list[str], import_paths: list[str]
) -> dict[str, tuple[str, str]]:
    """Run the tests of one family.

    Args:
        folder: The unpacked source distribution of PEFT.
        family: A name of `FAMILIES`.
        files: The test files, relative to the folder.
        pytest_options: Further options of pytest.
        import_paths: Paths that come before all others.

    Returns:
        Test -> (outcome, message); the outcome is "passed", "skipped" or "failed".
    """
    report = CACHE / f"{folder.name}-{family}.xml"
    report.unlink(missing_ok=True)
    python_path = os.pathsep.join([*import_paths, str(HERE), str(ROOT / "src")])
    environment = {**os.environ, "METALORA_FAMILY": family, "PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "metalora_conformance", "-p", "no:cacheprovider"]
    command += ["-q", "--no-header", "--tb=line", "-W", "ignore", f"--junitxml={report}"]
    command += ["-c", os.devnull, "--rootdir", str(folder), *pytest_options, *files]
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not report.exists():
        raise SystemExit(f"{family}: the tests did not run\n{finished.stdout[-3000:]}\n{finished.stderr[-3000:]}")
    return {_name(case): _outcome(case) for case in ElementTree.parse(report).iter("testcase")}


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname').rpartition('tests.')[2]}.{case.get('name')}"


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    for tag in ("failure", "error", "skipped"):
        element = case.find(tag)
        if element is not None:
            return ("skipped" if tag == "skipped" else "failed"), element.get("message") or ""
    return "passed", ""


def account(family: str, outcomes: dict[str, tuple[str, str]], expected: list[dict[str, Any]]) -> bool:
    """Print the counts of a family and every failure with its reason.

    Args:
        family: A name of `FAMILIES`.
        outcomes: Test -> (outcome, message).
        expected: The entries of expected_failures.yaml for this version of PEFT.

    Returns:
        Whether every failure has a reason, and every reason a failure.
    """
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(f"{family}: {counts['passed']} passed, {counts['skipped']} skipped, {counts['failed']} failed", flush=True)
    entries = [entry for entry in expected if family in entry.get("families", [family])]
    all_accounted, used = True, set()
    for name, (outcome, message) in outcomes.items():
        if outcome != "failed":
            continue
        entry = _entry_of(name, entries)
        if entry is None:
            all_accounted = False
            print(f"  UNEXPECTED {name}: {' '.join(message.split())[:MESSAGE_LENGTH]}")
        else:
            used.add(id(entry))
            print(f"  expected   {name}: {entry['reason']}")
    for entry in entries:
        if id(entry) not in used:
            all_accounted = False
            print(f"  NO LONGER FAILS {entry['tests']}: remove it from expected_failures.yaml")
    return all_accounted


def _entry_of(name: str, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first entry that has a glob for a test."""
    for entry in entries:
        if any(fnmatchcase(name, glob) for glob in entry["tests"]):
            return entry
    return None


def _expected_failures(version: str) -> list[dict[str, Any]]:
    """The entries of expected_failures.yaml for a version of PEFT."""
    entries = yaml.safe_load((HERE / "expected_failures.yaml").read_text()) or []
    return [entry for entry in entries if any(fnmatchcase(version, glob) for glob in entry.get("peft", ["*"]))]


def main() -> int:
    """Run the families on the command line, or all families."""
    sys.path.insert(0, str(HERE))
    sys.path.insert(0, str(ROOT / "src"))
    from cases import FILES
    from families import FAMILIES

    options = [word for word in sys.argv[1:] if word.startswith("-")]
    families = [word for word in sys.argv[1:] if not word.startswith("-")] or list(FAMILIES)
    for family in families:
        if family not in FAMILIES:
            raise SystemExit(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    versions = [option.partition("=")[2] for option in options if option.startswith("--peft=")]
    pytest_options = [option for option in options if not option.startswith("--peft=")]
    version = next(filter(None, versions), importlib.metadata.version("peft"))  # the Makefile passes an empty one
    folder, import_paths = fetch(version), library_paths(version)
    files = [file for file in FILES if (folder / file).exists()]
    expected = _expected_failures(version)
    results = []
    for family in families:
        outcomes = run(folder, family, files, pytest_options, import_paths)
        results.append(account(family, outcomes, expected))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
