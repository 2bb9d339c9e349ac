"""Other engines in processes of their own: block sizes, sliding window, ranks, sharing, weights, JSON, autostart."""

from __future__ import annotations

import json
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
from tiny_model import SLIDING, SMALL, Shape, add_tokenizer, byte_tokenizer, make_model

TOKENS = 10
PROMPTS = [random_prompt(random.Random(100 + i), 600) for i in range(3)]
TWICE: list[list[Any]] = [
    ["ready"],
    ["generate", PROMPTS, TOKENS],
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
    first, replayed, stats = results[1], results[4], results[5]
    assert first == plain
    assert replayed == plain
    reusable = 3 * (600 // arguments["block_size"]) * arguments["block_size"]
    assert stats["taken_tokens"] >= reusable / 2
    needed = min(reusable, 3 * shape.sliding_window or reusable)  # what lies outside a sliding window is not loaded
    assert stats["loaded_tokens"] >= needed / 2


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param({"tensor_parallel_size": 2}, id="tensor"),
        # Without compilation vLLM's CPU runner skips the warm-up that makes the second stage's buffers.
        pytest.param(
            {
                "pipeline_parallel_size": 2,
                "enforce_eager": False,
                "compilation_config": {"mode": 1, "backend": "eager"},
            },
            id="pipeline",
        ),
    ],
)
def test_two_ranks(daemon: Daemon, models_dir: Path, parallel: dict[str, Any]) -> None:
    """Two workers, each with its part of every block; a load ends when it has ended in both."""
    model = make_model(models_dir / "small", SMALL)
    cores = sorted(os.sched_getaffinity(0))
    environment = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[-1]}"}  # vLLM alone wants a NUMA node for each
    arguments = {**parallel, "num_gpu_blocks_override": 100}
    plain = run_scenario(
        model, None, [["generate", PROMPTS, TOKENS]], environment, **{**arguments, "enable_prefix_caching": False}
    )[0]
    results = run_scenario(
        model, transfer_config(daemon.socket_path, min_load_tokens=0), TWICE, environment, **arguments
    )
    first, replayed, stats = results[1], results[4], results[5]
    assert first == plain
    assert replayed == plain
    assert stats["loaded_tokens"] >= 3 * 576 / 2
    assert stats["load_failures"] == 0


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


SCHEMA = {
    "type": "object",
    "properties": {
        "found": {"type": "boolean"},
        "size": {"enum": ["small", "medium", "large"]},
        "word": {"type": "string", "pattern": "^[a-z]{2,6}$"},
    },
    "required": ["found", "size", "word"],
    "additionalProperties": False,
}


def test_short_json_with_failing_loads(daemon: Daemon, models_dir: Path) -> None:
    """A structured output whose load fails starts over with its grammar untouched: valid JSON, the same tokens."""
    model = make_model(models_dir / "with tokenizer", SMALL)
    add_tokenizer(model)
    arguments = {
        "skip_tokenizer_init": False,
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    answer: list[Any] = ["generate", PROMPTS, 80, None, SCHEMA]
    expected = run_scenario(model, None, [answer], enable_prefix_caching=False, **arguments)[0]
    decoder = byte_tokenizer()
    for tokens in expected:
        found = json.loads(decoder.decode(tokens))
        assert sorted(found) == ["found", "size", "word"]

    again: list[list[Any]] = [["drop_local_cache"], answer, ["stats"]]
    actions = [["ready"], answer, ["sleep", 0.3]]
    actions += [["arm", "agent.fail_op"], *again]  # every load
    actions += [["sleep", 0.3], ["arm", "agent.fail_op:2:7"], *again]  # every second one or so
    actions += [["sleep", 0.3], ["arm", ""], *again]
    results = run_scenario(model, transfer_config(daemon.socket_path, min_load_tokens=0), actions, **arguments)
    answers = [result for action, result in zip(actions, results, strict=True) if action is answer]
    assert answers == [expected] * 4
    stats = [result for action, result in zip(actions, results, strict=True) if action == ["stats"]]
    assert stats[0]["load_failures"] == 3
    assert stats[0]["loaded_tokens"] == 0
    assert stats[2]["loaded_tokens"] - stats[1]["loaded_tokens"] >= 3 * 576 / 2


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
    assert results[5]["loaded_tokens"] >= 3 * 576 / 2
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
