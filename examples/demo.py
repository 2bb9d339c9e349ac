"""A real vLLM on CPU serves the same multi-turn chats twice, without and with FlexKV; ends with a table.

vLLM's own cache is too small for all chats, as a GPU's is for many users. Run it by scripts/demo.sh.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "perf"), str(ROOT / "tests" / "e2e"), str(ROOT / "connector")]

from bench_json import percentile
from daemon import Daemon
from engine_process import EngineProcess
from tiny_model import DEMO, make_model

BLOCK = 32
ENGINE: dict[str, Any] = {
    "block_size": BLOCK,
    "num_gpu_blocks_override": 128,  # 4,096 tokens: two chats
    "max_model_len": 3584,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 4,
}


def transfer(socket_path: str) -> dict[str, Any]:
    return {
        "kv_connector": "FlexKVConnector",
        "kv_connector_module_path": "flexkv.vllm.connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"flexkv.socket": socket_path},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(title: str, model: Path, socket_path: str | None, work: dict[str, Any], concurrency: int) -> dict[str, Any]:
    """Serves the workload by an engine of its own."""
    say(f"{title}: starting vLLM ...")
    engine = EngineProcess(model, transfer(socket_path) if socket_path else None, **ENGINE)
    try:
        engine.wait_ready()
        warm_up = {"prompts": [[7] * 512] * 2, "output_tokens": 4}
        engine.call("serve", kind="single", work=warm_up, concurrency=2)
        engine.call("reset")
        before = engine.call("stats")

        def progress(done: int, total: int) -> None:
            print(f"\r{title}: {done} of {total} requests", end="", file=sys.stderr, flush=True)

        served: dict[str, Any] = engine.call("serve", progress, concurrency=concurrency, **work)
        say("")
        after = engine.call("stats")
    finally:
        engine.close()
    served["ours"] = after.get("loaded_tokens", 0) - before.get("loaded_tokens", 0)
    return served


def summary(served: dict[str, Any]) -> dict[str, float]:
    prompt = served["prompt_tokens"]
    return {
        "ttft_p50_ms": percentile(served["ttft_ms"], 0.5),
        "ttft_p99_ms": percentile(served["ttft_ms"], 0.99),
        "prompt_tokens_per_s": prompt / served["seconds"],
        "hit_rate_vllm": (served["cached_tokens"] - served["ours"]) / prompt,
        "hit_rate_flexkv": served["ours"] / prompt,
    }


def print_table(plain: dict[str, float], ours: dict[str, float], same: bool) -> None:
    rows = [
        ("TTFT p50", "ttft_p50_ms", "{:.0f} ms"),
        ("TTFT p99", "ttft_p99_ms", "{:.0f} ms"),
        ("prompt tokens/s", "prompt_tokens_per_s", "{:.0f}"),
        ("hit rate, vLLM's cache", "hit_rate_vllm", "{:.1%}"),
        ("hit rate, FlexKV", "hit_rate_flexkv", "{:.1%}"),
    ]
    print(f"\n{'':24}{'plain vLLM':>14}{'with FlexKV':>14}{'ratio':>9}")
    for title, key, form in rows:
        ratio = f"{ours[key] / plain[key]:.2f}x" if plain[key] and not key.startswith("hit") else ""
        print(f"{title:24}{form.format(plain[key]):>14}{form.format(ours[key]):>14}{ratio:>9}")
    print(f"same tokens: {'yes' if same else 'NO'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", default="", help="replay a trace in Mooncake's format instead of the chats")
    parser.add_argument(
        "--trace-requests", type=int, default=60, help="whole sessions of the trace, until there are so many"
    )
    parser.add_argument(
        "--trace-block-tokens", type=int, default=32, help="tokens for each of the trace's blocks of 512"
    )
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--json", default="", help="write the numbers of the table to this file")
    arguments = parser.parse_args()
    if arguments.trace:
        work: dict[str, Any] = {
            "kind": "trace",
            "work": {
                "path": arguments.trace,
                "vocab": DEMO.vocab,
                "limit": arguments.trace_requests,
                "block_tokens": arguments.trace_block_tokens,
                "max_tokens": 3500,
                "output_tokens": 32,
            },
        }
    else:
        work = {"kind": "chats", "work": {"vocab": DEMO.vocab}}
    model = make_model(ROOT / "build" / "models" / "demo", DEMO)
    plain = run("without FlexKV", model, None, work, arguments.concurrency)
    with Daemon(cpu_cache_bytes="2GiB") as daemon:
        say(f"flexkvd started in {daemon.directory}")
        ours = run("with FlexKV", model, daemon.socket_path, work, arguments.concurrency)
    same = plain["outputs"] == ours["outputs"]
    table = (summary(plain), summary(ours))
    print_table(*table, same)
    if arguments.json:
        Path(arguments.json).write_text(
            json.dumps({"plain": table[0], "flexkv": table[1], "same_tokens": same}, indent=1) + "\n"
        )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
