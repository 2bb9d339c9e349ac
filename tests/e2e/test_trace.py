"""A real vLLM served by a daemon that records: equal tokens, and a trace that says what happened."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from engine import random_prompt, transfer_config
from flexkv.paths import program
from scenario import run_scenario
from tiny_model import SMALL, make_model

BLOCK = 32
ARGUMENTS: dict[str, Any] = {
    "block_size": BLOCK,
    "max_model_len": 1024,
    "num_gpu_blocks_override": 64,
    "max_num_batched_tokens": 256,
}
TOKENS = 12
SYSTEM = random_prompt(random.Random(1), 200)
CHATS = [[*SYSTEM, *random_prompt(random.Random(10 + i), 60 + 40 * i)] for i in range(6)]
LATER = [[*chat, *random_prompt(random.Random(30 + i), 70)] for i, chat in enumerate(CHATS)]
SECRET = "a salt of its own"
HINT = {"continue_p": 0.25, "expected_in_s": 7.5}


def actions() -> list[list[Any]]:
    return [
        ["generate", CHATS, TOKENS],
        ["sleep", 0.3],
        ["drop_local_cache"],
        ["generate", LATER, TOKENS, None, None, HINT],
        ["sleep", 0.3],
        ["drop_local_cache"],
        ["generate", CHATS[:2], TOKENS, SECRET],
        ["stats"],
    ]


def flexkv(*arguments: str | Path) -> str:
    path = program("flexkv")
    assert path is not None
    answer = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return make_model(models_dir / "small", SMALL)


def test_a_recorded_run_is_equal_and_is_explained(model: Path) -> None:
    results = []
    for trace in (False, True):
        with Daemon(trace=trace) as daemon:
            transfer = transfer_config(daemon.socket_path, min_load_tokens=0, lookup_timeout_ms=1000)
            results.append(run_scenario(model, transfer, actions(), **ARGUMENTS))
            status = daemon.status()
            assert status["trace"]["enabled"] is trace
            daemon.stop()
            if trace:
                check(daemon, results[1][-1], status)
    assert results[0][:-1] == results[1][:-1]


def check(daemon: Daemon, stats: dict[str, Any], status: dict[str, Any]) -> None:
    gets, puts = daemon.records("get"), daemon.records("put")
    assert [get["prompt"] for get in gets] == [len(prompt) for prompt in (*CHATS, *LATER, *CHATS[:2])]
    assert sum(get.get("loaded", 0) for get in gets) == stats["loaded_tokens"] > 0
    assert sum(get.get("load_bytes", 0) for get in gets) == stats["worker"]["load_bytes"]
    assert sum(put.get("store_bytes", 0) for put in puts) == status["counters"]["store_bytes"] > 0
    assert sum(put.get("accepted", 0) for put in puts) == status["counters"]["put_blocks_accepted"]
    times = [record["t"] for record in map(json.loads, daemon.trace_path.read_text().splitlines()) if "t" in record]
    assert times == sorted(times)
    hints = [(get.get("continue_p"), get.get("expected_in_s")) for get in gets]
    assert hints == [(None, None)] * 6 + [(0.25, 7.5)] * 6 + [(None, None)] * 2
    text = daemon.trace_path.read_text()
    assert SECRET not in text
    assert daemon.records("drop") == []

    info = json.loads(flexkv("trace", "info", "--json", daemon.trace_path))
    assert info["format"] == "flexkv"
    assert "hit rate" in flexkv("trace", "analyze", daemon.trace_path).lower()
    flexkv("trace", "analyze", "--json", daemon.trace_path)

    # Nothing was evicted, so an infinite cache finds what the daemon found, but for requests that run at the same time.
    cell = json.loads(flexkv("trace", "simulate", daemon.trace_path, "--cpu-blocks", "inf", "--json").splitlines()[0])
    matched = sum(get.get("cpu_hit", 0) for get in gets)
    prompts = sum(get["prompt"] for get in gets)
    assert cell["requests"] == len(gets)
    assert cell["prompt_tokens"] == prompts
    assert cell["hit_rate"] == pytest.approx(matched / prompts, abs=0.005)
