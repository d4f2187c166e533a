"""PEFT's own tests against this library's tuner: fetch them, run them family by family, account for every failure.

    python tests/conformance/run.py [--peft=VERSION] [FAMILY ...]

They are those of the installed PEFT (or of VERSION, which is then put before it), from its source distribution, and
stay in the cache. Exit code 1: a failure that expected_failures.yaml does not give a reason for, or a reason for a
test that passes.
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "conformance"


def fetch(version: str) -> Path:
    """The unpacked source distribution of PEFT, from the package index if it is not in the cache."""
    folder = CACHE / f"peft-{version}"
    if not (folder / "tests").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = [f"peft=={version}", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", str(CACHE)]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *wanted], check=True)
        with tarfile.open(CACHE / f"peft-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    (folder / "tests" / "__init__.py").touch()  # its modules import one another relatively
    return folder


def library(version: str) -> list[str]:
    """The folder of the cache that PEFT of a version is imported from; none for the installed one."""
    if version == importlib.metadata.version("peft"):
        return []
    folder = CACHE / f"library-{version}"
    if not folder.is_dir():
        wanted = ["--no-deps", "--target", str(folder), f"peft=={version}"]
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return [str(folder)]


def run(folder: Path, family: str, files: list[str], more: list[str], paths: list[str]) -> dict[str, tuple[str, str]]:
    """Test -> (outcome, message) of one family, with these paths before all others."""
    report = CACHE / f"{folder.name}-{family}.xml"
    report.unlink(missing_ok=True)
    paths = os.pathsep.join([*paths, str(HERE), str(ROOT / "src")])
    environment = {**os.environ, "METALORA_FAMILY": family, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "metalora_conformance",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--tb=line", "-W", "ignore", f"--junitxml={report}", "-c", os.devnull, "--rootdir", str(folder)]
    done = subprocess.run([*command, *more, *files], cwd=folder, env=environment, capture_output=True, text=True)
    if not report.exists():
        raise SystemExit(f"{family}: the tests did not run\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return {_name(case): _outcome(case) for case in ET.parse(report).iter("testcase")}


def _name(case: ET.Element) -> str:
    return f"{case.get('classname').rpartition('tests.')[2]}.{case.get('name')}"


def _outcome(case: ET.Element) -> tuple[str, str]:
    for kind in ("failure", "error", "skipped"):
        if (found := case.find(kind)) is not None:
            return ("skipped" if kind == "skipped" else "failed"), found.get("message") or ""
    return "passed", ""


def account(family: str, outcomes: dict[str, tuple[str, str]], expected: list[dict]) -> bool:
    """Print the counts and every failure with its reason; whether all is accounted for."""
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(f"{family}: {counts['passed']} passed, {counts['skipped']} skipped, {counts['failed']} failed", flush=True)
    reasons = [entry for entry in expected if family in entry.get("families", [family])]
    good, used = True, set()
    for name, (outcome, message) in outcomes.items():
        if outcome != "failed":
            continue
        entry = next((entry for entry in reasons if any(fnmatchcase(name, glob) for glob in entry["tests"])), None)
        if entry is None:
            good = False
            print(f"  UNEXPECTED {name}: {' '.join(message.split())[:200]}")
        else:
            used.add(id(entry))
            print(f"  expected   {name}: {entry['reason']}")
    for entry in reasons:
        if id(entry) not in used:
            good = False
            print(f"  NO LONGER FAILS {entry['tests']}: remove it from expected_failures.yaml")
    return good


def main() -> int:
    """Run the families that are named, or all."""
    sys.path.insert(0, str(HERE))
    sys.path.insert(0, str(ROOT / "src"))
    from cases import FILES as every
    from families import FAMILIES

    families = [word for word in sys.argv[1:] if not word.startswith("-")] or list(FAMILIES)
    for family in families:
        if family not in FAMILIES:
            raise SystemExit(f"unknown family {family!r}; there are {', '.join(FAMILIES)}")
    asked = [word.partition("=")[2] for word in sys.argv[1:] if word.startswith("--peft=")]
    more = [word for word in sys.argv[1:] if word.startswith("-") and not word.startswith("--peft=")]
    version = next(filter(None, asked), importlib.metadata.version("peft"))
    folder, paths = fetch(version), library(version)
    files = [file for file in every if (folder / file).exists()]
    expected = yaml.safe_load((HERE / "expected_failures.yaml").read_text()) or []
    expected = [entry for entry in expected if any(fnmatchcase(version, glob) for glob in entry.get("peft", ["*"]))]
    results = [account(family, run(folder, family, files, more, paths), expected) for family in families]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
