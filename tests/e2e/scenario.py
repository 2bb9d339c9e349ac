"""One engine in a process of its own: reads a JSON object from stdin, does what it lists, prints the results as JSON.

{"model": DIR, "transfer": {...} or null, "arguments": {...}, "actions": [["generate", prompts, max_tokens, salt], ...]}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def run_scenario(
    model: Path,
    transfer: dict[str, Any] | None,
    actions: list[list[Any]],
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> list[Any]:
    """The result of each action, from an engine of its own."""
    request = {"model": str(model), "transfer": transfer, "arguments": arguments, "actions": actions}
    answer = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(environment or {})},
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-6000:]
    results: list[Any] = json.loads(answer.stdout.splitlines()[-1])
    return results


def _perform(engine: Any, action: str, *values: Any) -> Any:
    if action == "generate":
        return engine.generate(*values)
    if action == "sleep":
        time.sleep(*values)
    elif action == "ready":
        engine.wait_ready()
    elif action == "drop_local_cache":
        engine.drop_local_cache()
    elif action == "arm":
        from flexkv import _core

        _core.arm_faults(*values)
    elif action == "stats":
        return engine.stats()
    else:
        raise ValueError(action)
    return None


def main() -> None:
    request = json.load(sys.stdin)
    from engine import RealEngine

    engine = RealEngine(Path(request["model"]), request["transfer"], **request["arguments"])
    results = [_perform(engine, *action) for action in request["actions"]]
    engine.close()
    print("\n" + json.dumps(results), flush=True)
    os._exit(0)  # the engine is down; its libraries' exit handlers are not what is tested


if __name__ == "__main__":
    main()
