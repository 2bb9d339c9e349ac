"""Processor time of the connector per engine step: vLLM's real Scheduler, KVCacheManager and Request objects with
sha256 block hashes, a real daemon in another process, 64 running requests of 8 k tokens, steps that admit 4 more.

Counted is the calling thread's CPU time of all connector calls of one role between two build_connector_meta, less what
the two clock readings around each call cost. Nothing is computed: the forward pass is left out.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "perf"), str(ROOT / "connector")]
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from bench_json import JsonSink, percentile
from daemon import Daemon
from harness import VOCAB, Engine, make_config

PROMPT = 8192
BLOCK = 16
RUNNING = 64
NEW = 4
SCHEDULER_HOOKS = (
    "on_new_request",
    "get_num_new_matched_tokens",
    "get_loaded_kv_cache_group_ids",
    "update_state_after_alloc",
    "get_external_cache_hit_sources",
    "build_connector_meta",
    "update_connector_output",
    "request_finished",
    "take_events",
    "get_kv_connector_stats",
    "has_pending_block_frees",
    "has_pending_push_work",
)
WORKER_HOOKS = (
    "handle_preemptions",
    "bind_connector_metadata",
    "start_load_kv",
    "finish_forward",
    "wait_for_save",
    "get_transfer_results",
    "get_block_ids_with_load_errors",
    "get_kv_connector_stats",
    "build_connector_worker_meta",
    "clear_connector_metadata",
)


class Meter:
    """Thread CPU time spent in the hooks of one connector object."""

    def __init__(self, connector: Any, hooks: tuple[str, ...]) -> None:
        self.spent_ns = 0
        self.seen: set[str] = set()
        self._by_hook: dict[str, float] = {}
        self.hooks: dict[str, dict[str, list[float]]] = {}  # kind of step -> hook -> us, step by step
        self._overhead_ns = self._empty_call_ns()
        for hook in hooks:
            setattr(connector, hook, self._timed(hook, getattr(connector, hook)))

    def _timed(self, hook: str, call: Any) -> Any:
        clock = time.thread_time_ns

        def timed(*values: Any, **named: Any) -> Any:
            start = clock()
            result = call(*values, **named)
            spent = clock() - start - self._overhead_ns
            self.spent_ns += spent
            self._by_hook[hook] = self._by_hook.get(hook, 0) + spent / 1000
            self.seen.add(hook)
            return result

        return timed

    @staticmethod
    def _empty_call_ns() -> int:
        def nothing() -> None:
            pass

        times = []
        for _ in range(2000):
            start = time.thread_time_ns()
            nothing()
            times.append(time.thread_time_ns() - start)
        return int(percentile(times, 0.5))

    def take_us(self, kind: str) -> float:
        spent, self.spent_ns = self.spent_ns, 0
        hooks = self.hooks.setdefault(kind, {})
        for hook, us in self._by_hook.items():
            hooks.setdefault(hook, []).append(us)
        self._by_hook.clear()
        self.seen.clear()
        return max(0.0, spent / 1000)

    def print_hooks(self) -> None:
        for kind, hooks in self.hooks.items():
            shares = ", ".join(f"{hook} {percentile(us, 0.5):.0f}" for hook, us in hooks.items())
            print(f"# {kind}: {shares} (us a step, p50)", file=sys.stderr)


class IdleEngine(Engine):
    """No bytes are written or checked; the tensors are as small as they can be."""

    LAYERS = 1
    KV_HEADS = 1
    HEAD_DIM = 1

    def _write(self, request_id: str, begin: int, end: int) -> None:
        pass

    def _check(self, request_id: str, end: int) -> None:
        pass

    def _update_tables(self, output: Any) -> None:
        pass


def prompt(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(PROMPT)]


def measure(engine: Engine, rounds: int, quiet_steps: int) -> dict[str, list[float]]:
    scheduler, worker = Meter(engine.connector, SCHEDULER_HOOKS), Meter(engine.worker, WORKER_HOOKS)
    results: dict[str, list[float]] = {"scheduler new": [], "scheduler": [], "worker new": [], "worker": []}
    serial = RUNNING
    running = [f"q{i}" for i in range(RUNNING)]

    def step() -> None:
        # Up to build_connector_meta inside schedule(), then the rest of this step, which counts to the next.
        output = engine.scheduler.schedule()
        kind = " new" if "on_new_request" in scheduler.seen else ""
        results["scheduler" + kind].append(scheduler.take_us("scheduler" + kind))
        result = engine._execute(output)
        results["worker" + kind].append(worker.take_us("worker" + kind))
        engine.scheduler.update_from_output(output, result)

    for i in range(RUNNING):
        engine.add(f"q{i}", prompt(i), max_tokens=4000)
        if i % NEW == NEW - 1:
            step()
    for _ in range(50):
        step()
    for values in results.values():
        values.clear()
    scheduler.hooks.clear()
    worker.hooks.clear()
    for round_number in range(rounds):
        # vLLM makes requests (and hashes their prompts) in its input thread; the scheduler's thread takes all that wait
        # in one go before a step.
        arrived = []
        for i in range(NEW):
            # Half come back: their prompts are held by the daemon, and their blocks are loaded.
            seed = serial if (round_number + i) % 2 else serial % RUNNING
            arrived.append(engine.make_request(f"q{serial}", prompt(seed), max_tokens=4000))
            running.append(f"q{serial}")
            serial += 1
        for request in arrived:
            engine.scheduler.add_request(request)
        for i in range(quiet_steps):
            step()
            if i < NEW:  # as many end as came, one by one
                engine.abort(running.pop(0))
    scheduler.print_hooks()
    worker.print_hooks()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--model-dir", default="/tmp/flexkv-bench-model")
    arguments = parser.parse_args()
    with Daemon(cpu_cache_bytes="2GiB") as daemon:
        config = make_config(
            Path(arguments.model_dir),
            daemon.socket_path,
            block_size=BLOCK,
            num_blocks=(RUNNING + 2 * NEW) * (PROMPT // BLOCK + 32),
            max_num_batched_tokens=(NEW + 1) * PROMPT,
            max_num_seqs=RUNNING + NEW,
            max_model_len=PROMPT + 4096,
            # Defaults, but for the hits: without computing there is no step time to weigh a load against.
            extra={"flexkv.lookup_wait_us": 100, "flexkv.lookup_timeout_ms": 20},
        )
        engine = IdleEngine(config)
        engine.wait_ready()
        results = measure(engine, arguments.rounds, quiet_steps=25)
        stats = engine.stats()
        engine.close()
    print(
        f"# {stats['loads']} loads, {stats['puts']} puts, {stats['put_blocks']} blocks put, "
        f"{stats['lookup_timeouts']} lookups timed out",
        file=sys.stderr,
    )
    sink = JsonSink(arguments.json)
    for name, key, share, limit in (
        ("step.scheduler_p50_us", "scheduler new", 0.5, 100),
        ("step.scheduler_p99_us", "scheduler new", 0.99, 250),
        ("step.worker_p50_us", "worker new", 0.5, 40),
        ("step.scheduler_quiet_p50_us", "scheduler", 0.5, 100),
        ("step.scheduler_quiet_p99_us", "scheduler", 0.99, 250),
        ("step.worker_quiet_p50_us", "worker", 0.5, 40),
    ):
        samples = results[key]
        sink.add(name, percentile(samples, share), "us", limit, "goal", "lower", len(samples))


if __name__ == "__main__":
    main()
