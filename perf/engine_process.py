"""A real engine in a process of its own that serves commands of the benchmark, one JSON line each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "perf"), str(ROOT / "connector")]

import workload

MARK = "@@result "


class EngineProcess:
    """Used by the parent."""

    def __init__(self, model: Path, transfer: dict[str, Any] | None, **arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "FLEXKV_BENCH_LOG" not in os.environ else None,
            text=True,
            env={"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2", **os.environ},
        )
        self._send({"model": str(model), "transfer": transfer, "arguments": arguments})

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _receive(self, on_progress: Any = None) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith(MARK):
                continue
            answer = json.loads(line[len(MARK) :])
            if isinstance(answer, dict) and "progress" in answer:
                if on_progress is not None:
                    on_progress(*answer["progress"])
                continue
            return answer
        raise RuntimeError(f"the engine ended with code {self._process.wait()} (FLEXKV_BENCH_LOG=1 shows its log)")

    def wait_ready(self) -> None:
        assert self._receive() == "ready"

    def call(self, command: str, on_progress: Any = None, **values: Any) -> Any:
        self._send({"command": command, **values})
        return self._receive(on_progress)

    def close(self) -> None:
        if self._process.poll() is None:
            self._send({"command": "exit"})
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()


def _make_work(kind: str, values: dict[str, Any]) -> list[workload.Chat]:
    if kind == "trace":
        return workload.trace(Path(values.pop("path")), **values)
    if kind == "single":
        return workload.single(values["prompts"], values["output_tokens"])
    return workload.chats(**values)


def _answer(value: Any) -> None:
    print(MARK + json.dumps(value), flush=True)


def _perform(engine: Any, request: dict[str, Any]) -> Any:
    command = request["command"]
    if command == "serve":
        work = _make_work(request["kind"], request["work"])
        served = workload.serve(
            engine, work, request["concurrency"], lambda done, total: _answer({"progress": [done, total]})
        )
        return served.as_json()
    if command == "drop_local_cache":
        time.sleep(0.3)  # stores under way
        engine.drop_local_cache()
    elif command == "reset":
        engine.drop_local_cache()
        if engine.connector is not None:
            engine.connector.reset_cache()
    elif command == "stats":
        return engine.stats() if engine.connector is not None else {}
    return "done"


def main() -> None:
    from engine import RealEngine

    setup = json.loads(sys.stdin.readline())
    engine = RealEngine(Path(setup["model"]), setup["transfer"], **setup["arguments"])
    if engine.connector is not None:
        engine.wait_ready()
    _answer("ready")
    for line in sys.stdin:
        request = json.loads(line)
        if request["command"] == "exit":
            break
        _answer(_perform(engine, request))
    engine.close()
    os._exit(0)


if __name__ == "__main__":
    main()
