"""What recording costs a real vLLM: throughput with enable_trace against the same without.

Two daemons, one that records and one that does not, and an engine on each; the engines take turns as in e2e_bench.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "perf"), str(ROOT / "tests" / "e2e"), str(ROOT / "connector")]

from bench_json import JsonSink
from daemon import Daemon
from e2e_bench import SMALL_CACHE, Bench, note
from tiny_model import DEMO, make_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    parser.add_argument("--pairs", type=int, default=12)
    arguments, _ = parser.parse_known_args()  # others are for the benches that run before
    began = time.monotonic()
    model = make_model(ROOT / "build" / "models" / "demo", DEMO)
    keys: dict[str, Any] = {"cpu_cache_bytes": "2GiB"}
    with Daemon(**keys) as silent, Daemon(**keys, trace=True) as recording:
        sink = JsonSink(arguments.json)
        bench = Bench(sink, model, recording)
        without = Bench(SimpleNamespace(add=None), model, silent).start(True, SMALL_CACHE)  # type: ignore[arg-type]
        ours = bench.start(True, SMALL_CACHE)
        # Every prompt begins with a block that was seen before: lookups, loads and stores are recorded.
        bench.pairs(
            "trace.record_cost", without, ours, arguments.pairs, shared_blocks=True, limit_name="without a trace"
        )
        trace = recording.status()["trace"]
        note(f"{trace['records']} records, {trace['written_bytes']} bytes, {trace['dropped']} dropped")
        if trace["records"] < 16 * arguments.pairs or trace["dropped"] or trace["lost"]:
            raise SystemExit("the trace is not complete")
        without.close()
        ours.close()
    note(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
