"""A real flexkvd for a test, with a socket directory of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from flexkv.paths import SOCKET_NAME, program
from flexkv.vllm.autostart import is_listening


class Daemon:
    def __init__(self, cpu_cache_bytes: str = "512MiB", faults: str = "", trace: bool = False, **config: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flexkv-test-"))
        self._config = {"cpu_cache_bytes": cpu_cache_bytes, "segment_bytes": "64MiB", "lock_memory": False, **config}
        self.trace_path = self.directory / "trace.jsonl"
        if trace:
            self._config |= {"enable_trace": True, "trace_file_path": str(self.trace_path)}
        self._faults = faults
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def socket_path(self) -> str:
        return str(self.directory / SOCKET_NAME)

    def start(self) -> None:
        assert self.process is None
        path = program("flexkvd")
        assert path is not None, "flexkvd is not built"
        config = self.directory / "config.json"
        config.write_text(json.dumps(self._config))
        environment = dict(os.environ)
        environment.pop("FLEXKV_FAULTS", None)
        if self._faults:
            environment["FLEXKV_FAULTS"] = self._faults
        log = (self.directory / "log").open("ab")
        self.process = subprocess.Popen(
            [path, "--config", str(config), "--socket-dir", str(self.directory)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
        log.close()
        deadline = time.monotonic() + 10
        while not is_listening(self.socket_path):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def pause(self) -> None:
        """When this returns, no thread of the daemon runs."""
        self._signal(signal.SIGSTOP)
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task")
        while any((task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, wherever it is."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """In order: what it recorded is written."""
        assert self.process is not None
        self._signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.log()
        self.process = None

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Of the trace, once the daemon has stopped."""
        lines = [json.loads(line) for line in self.trace_path.read_text().splitlines()]
        return [line for line in lines if line["k"] == kind]

    def status(self) -> dict[str, Any]:
        path = program("flexkv")
        assert path is not None
        answer = subprocess.run(
            [path, "--socket-dir", str(self.directory), "status", "--json"], capture_output=True, check=True, timeout=20
        )
        status: dict[str, Any] = json.loads(answer.stdout)
        return status

    def log(self) -> str:
        return (self.directory / "log").read_text()
