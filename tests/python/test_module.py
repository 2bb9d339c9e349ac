"""The extension module beside other libraries in one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flexkv import _core

MODULE = Path(_core.__file__)


def _tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_it_exports_its_init_function_only() -> None:
    names = [line.split()[-1] for line in _tool("nm", "-D", "--defined-only", str(MODULE)).splitlines()]
    assert names == ["PyInit__core"]


def test_it_needs_the_c_library_only() -> None:
    needed = [line for line in _tool("readelf", "-d", str(MODULE)).splitlines() if "(NEEDED)" in line]
    libraries = {line.split("[")[1].rstrip("]").split(".so")[0] for line in needed}
    assert libraries <= {"libc", "libm", "ld-linux-x86-64", "libpthread"}


USE = """
_core.arm_faults("agent.fail_op:3:7")
_core.arm_faults("")
worker = _core.WorkerSession()
worker.fail_loads([("r", [1, 2], False)])
assert worker.poll() == (["r"], [1, 2], [], [])
session = _core.SchedulerSession(
    socket_path="/nonexistent/daemon.sock", engine_id=(1, 2), world_size=1, tokens_per_block=16, label="t",
    fingerprint="f", lookup_wait_us=100, lookup_timeout_ms=20, load_timeout_ms=1000, min_load_tokens=0,
    block_tables_change=False)
assert not session.wait_ready(10)
assert session.stats()["ready"] is False
session.close()
print("used")
"""


@pytest.mark.parametrize("other", ["torch", "grpc"])
@pytest.mark.parametrize("first", [True, False])
def test_it_loads_before_and_after(other: str, first: bool) -> None:
    pytest.importorskip(other)
    ours = "from flexkv import _core"
    imports = f"{ours}\nimport {other}" if first else f"import {other}\n{ours}"
    answer = subprocess.run([sys.executable, "-c", imports + "\n" + USE], capture_output=True, text=True, timeout=120)
    assert answer.stdout.strip() == "used", answer.stderr


def test_unknown_faults_are_refused() -> None:
    with pytest.raises(ValueError, match=r"agent\.nonsense"):
        _core.arm_faults("agent.nonsense")
