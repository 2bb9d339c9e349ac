"""What a real vLLM on CPU gains and loses by FlexKV, each figure beside plain vLLM in the same run.

Two engines live at the same time, one plain and one with the cache, and take turns, so that both see the same machine.
FlexKV runs with its default configuration.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "perf"), str(ROOT / "tests" / "e2e"), str(ROOT / "connector")]

from bench_json import JsonSink, percentile
from daemon import Daemon
from engine_process import EngineProcess
from tiny_model import DEMO, make_model
from workload import tokens

BLOCK = 32
SMALL_CACHE: dict[str, Any] = {
    "block_size": BLOCK,
    "num_gpu_blocks_override": 128,  # two chats
    "max_model_len": 3584,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 4,
}
LARGE_CACHE: dict[str, Any] = {
    **SMALL_CACHE,
    "num_gpu_blocks_override": 1024,
    "max_model_len": 4608,
    "max_num_seqs": 16,
}
TOKEN_BYTES = DEMO.layers * DEMO.kv_heads * 2 * DEMO.head_dim * 4


def note(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


class Bench:
    def __init__(self, sink: JsonSink, model: Path, daemon: Daemon) -> None:
        self.sink = sink
        self.model = model
        self.transfer = {
            "kv_connector": "FlexKVConnector",
            "kv_connector_module_path": "flexkv.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"flexkv.socket": daemon.socket_path},
        }
        self._seed = 1000

    def prompt(self, length: int) -> list[int]:
        self._seed += 1
        return tokens(random.Random(self._seed), length, DEMO.vocab)

    def start(self, with_flexkv: bool, arguments: dict[str, Any]) -> EngineProcess:
        engine = EngineProcess(self.model, self.transfer if with_flexkv else None, **arguments)
        engine.wait_ready()
        self.serve(engine, [self.prompt(600) for _ in range(4)], 2)
        return engine

    def serve(self, engine: EngineProcess, prompts: list[list[int]], concurrency: int, outputs: int = 8) -> Any:
        work = {"prompts": prompts, "output_tokens": outputs}
        return engine.call("serve", kind="single", work=work, concurrency=concurrency)

    # --- a large cache of the engine's own ---------------------------------------------------------

    def hit_and_stampede(self, repeats: int) -> None:
        engine = self.start(True, LARGE_CACHE)
        from_daemon: list[float] = []
        from_engine: list[float] = []
        for _ in range(repeats):
            prompt = self.prompt(4000)
            self.serve(engine, [prompt], 1)
            engine.call("drop_local_cache")
            from_daemon += self.serve(engine, [prompt], 1)["ttft_ms"]
            from_engine += self.serve(engine, [prompt], 1)["ttft_ms"]
        self.sink.add(
            "e2e.ttft_hit",
            statistics.median(from_daemon),
            "ms",
            statistics.median(from_engine),
            "vLLM's own prefix cache",
            "lower",
            repeats,
            from_daemon,
        )
        shares = []
        for _ in range(3):
            prompt = self.prompt(4000)
            self.serve(engine, [prompt], 1)
            engine.call("drop_local_cache")
            before = engine.call("stats")["worker"]["load_bytes"]
            self.serve(engine, [[*prompt, i + 3] for i in range(16)], 16)
            shares.append((engine.call("stats")["worker"]["load_bytes"] - before) / TOKEN_BYTES)
        one_prefix = 4000 // BLOCK * BLOCK
        self.sink.add(
            "e2e.stampede", statistics.median(shares), "tokens loaded", one_prefix, "one prefix", "lower", 3, shares
        )
        engine.close()

    # --- a small one --------------------------------------------------------------------------------

    def multiturn(self, plain: EngineProcess, ours: EngineProcess, repeats: int) -> None:
        figures: dict[str, list[float]] = {"plain ttft": [], "ours ttft": [], "plain tps": [], "ours tps": []}
        for i in range(repeats):
            outputs = []
            for name, engine in (("plain", plain), ("ours", ours)):
                engine.call("reset")
                work = {"vocab": DEMO.vocab, "seed": i + 1}
                served = engine.call("serve", kind="chats", work=work, concurrency=2)
                figures[f"{name} ttft"].append(percentile(served["ttft_ms"], 0.5))
                figures[f"{name} tps"].append(served["prompt_tokens"] / served["seconds"])
                outputs.append(served["outputs"])
            if outputs[0] != outputs[1]:
                raise SystemExit("the engines generate different tokens")
        for name, key, unit, better in (
            ("e2e.multiturn_ttft", "ttft", "ms", "lower"),
            ("e2e.multiturn_tps", "tps", "prompt tokens/s", "higher"),
        ):
            self.sink.add(
                name,
                statistics.median(figures[f"ours {key}"]),
                unit,
                statistics.median(figures[f"plain {key}"]),
                "plain vLLM, same small cache",
                better,
                repeats,
                figures[f"ours {key}"],
            )

    def pairs(
        self,
        name: str,
        plain: EngineProcess,
        ours: EngineProcess,
        count: int,
        shared_blocks: bool,
        limit_name: str = "plain vLLM",
    ) -> None:
        """Throughput with new prompts, the engines taking turns; median of the pairs' ratios.

        A pair is eight prompts for each engine, two at a time in the order ABBA ABBA, next pair BAAB BAAB: a machine
        whose speed drifts slows both.
        """
        ratios: list[float] = []
        speeds: dict[str, list[float]] = {"plain": [], "ours": []}
        engines = {"plain": plain, "ours": ours}
        heads = [self.prompt(BLOCK * (1 + i % 4)) for i in range(8)]
        if shared_blocks:
            self.serve(ours, [head + self.prompt(64) for head in heads], 2)
            self.serve(plain, [head + self.prompt(64) for head in heads], 2)
        before = ours.call("stats")
        for i in range(count):
            prompts = [(heads[k] if shared_blocks else []) + self.prompt(640) for k in range(8)]
            seconds = {"plain": 0.0, "ours": 0.0}
            for part in range(4):
                first = (i + part) % 2
                for who in ("plain", "ours") if first else ("ours", "plain"):
                    engines[who].call("drop_local_cache")  # waits until stores are over
                    served = self.serve(engines[who], prompts[2 * part : 2 * part + 2], 2, outputs=16)
                    seconds[who] += served["seconds"]
            for who, spent in seconds.items():
                speeds[who].append(sum(len(prompt) for prompt in prompts) / spent)
            ratios.append(speeds["ours"][-1] / speeds["plain"][-1])
        after = ours.call("stats")
        loads, skipped = (after[key] - before[key] for key in ("loads", "short_hits_skipped"))
        note(f"{name}: {loads} hits loaded, {skipped} left as too short, of {8 * count} prompts")
        if shared_blocks and loads + skipped < 8 * count / 2:
            raise SystemExit("most prompts had no hit: this measured something else")
        middle = statistics.median(ratios)
        # Of the median, by order statistics: the ranks that a binomial leaves out with 2.5 % on each side.
        ordered = sorted(ratios)
        low = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
        note(f"{name}: median ratio {middle:.4f}, 95 % interval [{ordered[low]:.4f}, {ordered[count - 1 - low]:.4f}]")
        plain_speed = statistics.median(speeds["plain"])
        self.sink.add(
            name, middle * plain_speed, "prompt tokens/s", plain_speed, limit_name, "higher", count, speeds["ours"]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default="")
    parser.add_argument("--only", default="", help="hit, multiturn, noreuse or short_hit")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    began = time.monotonic()
    model = make_model(ROOT / "build" / "models" / "demo", DEMO)
    only = arguments.only
    with Daemon(cpu_cache_bytes="4GiB") as daemon:
        bench = Bench(JsonSink(arguments.json), model, daemon)
        if only in ("", "hit"):
            bench.hit_and_stampede(10)
        if only in ("", "multiturn", "noreuse", "short_hit"):
            plain, ours = bench.start(False, SMALL_CACHE), bench.start(True, SMALL_CACHE)
            if only in ("", "multiturn"):
                bench.multiturn(plain, ours, arguments.repeats)
            if only in ("", "noreuse"):
                bench.pairs("e2e.noreuse", plain, ours, arguments.pairs, shared_blocks=False)
            if only in ("", "short_hit"):
                bench.pairs("e2e.short_hit", plain, ours, arguments.pairs, shared_blocks=True)
            note(json.dumps({k: v for k, v in ours.call("stats").items() if k != "worker"}))
            plain.close()
            ours.close()
    note(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
