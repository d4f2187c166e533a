"""vLLM's own reader takes our LoRA exports; it runs in a process of its own, with stubs for the rest of vLLM."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("regex")
CHECK = Path(__file__).parents[2] / "tools" / "vllm_check.py"


@pytest.mark.slow
def test_vllm_reads_every_export_as_the_adapter():
    run = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, timeout=900)
    if "pip" in run.stderr and "CalledProcessError" in run.stderr:
        pytest.skip("the wheel of vLLM could not be downloaded")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("is read") == 7
