"""Time to first token of a prompt that only the SSD tier holds, beside computing one of the same length.

A real vLLM stores prompts; the daemon is killed with SIGKILL and the engine ends; both start again, and each prompt is
asked for once, a new one of the same length next to it. What the daemon counts proves that the bytes came from SSD. The
model and the engine's arguments are those of e2e.ttft_hit.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "perf"), str(ROOT / "tests" / "e2e"), str(ROOT / "connector")]

from bench_json import JsonSink
from daemon import Daemon
from e2e_bench import BLOCK, LARGE_CACHE, Bench, note
from engine_process import EngineProcess
from tiny_model import DEMO, make_model

TOKENS = 4000
BLOCKS = TOKENS // BLOCK


def _settle(daemon: Daemon, written: int = 0) -> None:
    """Until nothing is being written back, and so many blocks were."""
    deadline = time.monotonic() + 60
    while True:
        status = daemon.status()
        busy = status["ssd"]["writes_waiting"] + status["ssd"]["writes_in_flight"]
        if not busy and status["counters"]["ssd_written_blocks"] >= written:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the daemon did not write back what was stored:\n{daemon.log()}")
        time.sleep(0.05)


class SsdBench(Bench):
    def __init__(self, sink: JsonSink, model: Path, daemon: Daemon) -> None:
        super().__init__(sink, model, daemon)
        self.daemon = daemon
        self.transfer["kv_connector_extra_config"]["flexkv.autostart"] = False

    def ttft(self, engine: EngineProcess, prompt: list[int]) -> tuple[float, int]:
        """In ms, and how many blocks were read from SSD for it."""
        _settle(self.daemon)
        before = self.daemon.status()["counters"]["ssd_load_blocks"]
        served = self.serve(engine, [prompt], 1)
        engine.call("drop_local_cache")  # waits until stores are over
        return served["ttft_ms"][0], self.daemon.status()["counters"]["ssd_load_blocks"] - before

    def run(self, repeats: int) -> None:
        stored = [self.prompt(TOKENS) for _ in range(repeats)]
        engine = self.start(True, LARGE_CACHE)
        for prompt in stored:
            self.serve(engine, [prompt], 1)
        engine.call("drop_local_cache")
        _settle(self.daemon, repeats * BLOCKS)
        self.daemon.kill()
        engine.close()

        began = time.monotonic()
        self.daemon.start()
        note(f"the daemon was ready again after {time.monotonic() - began:.2f} s")
        engine = self.start(True, LARGE_CACHE)
        from_ssd: list[float] = []
        computed: list[float] = []
        for i, prompt in enumerate(stored):
            for hit in (True, False) if i % 2 else (False, True):
                took, blocks = self.ttft(engine, prompt if hit else self.prompt(TOKENS))
                # The last token is always computed, so the block that ends with it may be.
                if blocks < BLOCKS - 1 if hit else blocks > 0:
                    raise SystemExit(f"{blocks} of {BLOCKS} blocks came from SSD: this measured something else")
                (from_ssd if hit else computed).append(took)
        engine.close()
        self.sink.add(
            "e2e.ttft_ssd",
            statistics.median(from_ssd),
            "ms",
            statistics.median(computed),
            f"computing {TOKENS} tokens",
            "lower",
            repeats,
            from_ssd,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    parser.add_argument("--dir", default=str(ROOT / "build"), help="where the SSD tier's directory is made")
    parser.add_argument("--repeats", type=int, default=6)
    arguments, _ = parser.parse_known_args()  # scripts/bench.sh restart passes options of its other half, too
    began = time.monotonic()
    model = make_model(ROOT / "build" / "models" / "demo", DEMO)
    Path(arguments.dir).mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="ttft-ssd-", dir=arguments.dir))
    tier: dict[str, Any] = {"enable_ssd": True, "ssd_cache_dir": str(directory / "tier"), "ssd_cache_bytes": "6GiB"}
    try:
        with Daemon(cpu_cache_bytes="4GiB", **tier) as daemon:
            SsdBench(JsonSink(arguments.json), model, daemon).run(arguments.repeats)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    note(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
