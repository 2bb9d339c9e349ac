"""Other engines, each in a process of its own: block sizes, sliding window, sharing, replaced weights, autostart."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from engine import random_prompt, transfer_config
from flexkv.paths import SOCKET_NAME, program
from flexkv.vllm.autostart import is_listening
from scenario import run_scenario
from tiny_model import SLIDING, SMALL, Shape, make_model

TOKENS = 10
PROMPTS = [random_prompt(random.Random(100 + i), 600) for i in range(3)]
# Filled one prompt at a time, replayed together.
TWICE: list[list[Any]] = [
    ["ready"],
    *[["generate", [prompt], TOKENS] for prompt in PROMPTS],
    ["sleep", 0.3],
    ["drop_local_cache"],
    ["generate", PROMPTS, TOKENS],
    ["stats"],
]
ONCE: list[list[Any]] = [["ready"], ["generate", PROMPTS, TOKENS], ["sleep", 0.3], ["stats"]]


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        pytest.param(SMALL, {"block_size": 128}, id="blocks of 128 tokens"),
        pytest.param(SLIDING, {"block_size": 32}, id="sliding window"),
        pytest.param(SMALL, {"block_size": 32, "max_num_batched_tokens": 64}, id="chunks of 64 tokens"),
    ],
)
def test_equal_tokens(daemon: Daemon, models_dir: Path, shape: Shape, arguments: dict[str, Any]) -> None:
    model = make_model(models_dir / f"model {shape.sliding_window}", shape)
    plain = run_scenario(model, None, [["generate", PROMPTS, TOKENS]], enable_prefix_caching=False, **arguments)[0]
    transfer = transfer_config(daemon.socket_path, min_load_tokens=0)
    results = run_scenario(model, transfer, TWICE, num_gpu_blocks_override=100, **arguments)
    first = [tokens for result in results[1:4] for tokens in result]
    replayed, stats = results[6], results[7]
    assert first == plain
    assert replayed == plain
    reusable = 3 * (600 // arguments["block_size"]) * arguments["block_size"]
    assert stats["taken_tokens"] >= reusable / 2
    needed = min(reusable, 3 * shape.sliding_window or reusable)  # what lies outside a sliding window is not loaded
    assert stats["loaded_tokens"] >= needed / 2


def test_second_engine_hits_and_replaced_weights_do_not(daemon: Daemon, models_dir: Path) -> None:
    model = make_model(models_dir / "replaced", SMALL, seed=1)
    transfer = transfer_config(daemon.socket_path, min_load_tokens=0)
    first = run_scenario(model, transfer, ONCE)
    second = run_scenario(model, transfer, ONCE, num_gpu_blocks_override=100)
    assert first[1] == second[1]
    assert first[3]["loaded_tokens"] == 0
    assert second[3]["loaded_tokens"] >= 3 * 576 / 2

    make_model(model, SMALL, seed=2)  # other weights in the same files
    replaced = run_scenario(model, transfer, ONCE)
    assert replaced[3]["loaded_tokens"] == 0
    assert replaced[1] != first[1]


def test_autostart(models_dir: Path, tmp_path: Path) -> None:
    """No daemon runs: the engine starts one, which outlives it without the engine's CPU binding or thread settings."""
    model = make_model(models_dir / "small", SMALL)
    directory = tmp_path / "sockets"
    transfer = transfer_config(str(directory), min_load_tokens=0)
    transfer["kv_connector_extra_config"]["flexkv.autostart"] = True
    config = tmp_path / "config.json"
    config.write_text('{"cpu_cache_bytes": "256MiB", "segment_bytes": "64MiB"}')
    environment = {"FLEXKV_CONFIG_PATH": str(config), "OMP_NUM_THREADS": "1"}
    results = run_scenario(model, transfer, TWICE, environment)
    assert results[7]["loaded_tokens"] >= 3 * 576 / 2
    assert is_listening(str(directory / SOCKET_NAME))

    flexkv = program("flexkv")
    assert flexkv is not None
    pid = int((directory / "daemon.lock").read_text())
    assert len(os.sched_getaffinity(pid)) == len(os.sched_getaffinity(0))
    assert os.getpgid(pid) == pid
    assert b"OMP_NUM_THREADS" not in Path(f"/proc/{pid}/environ").read_bytes()
    subprocess.run([flexkv, "--socket-dir", str(directory), "stop"], check=True, timeout=20)
    deadline = time.monotonic() + 5
    while is_listening(str(directory / SOCKET_NAME)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
