"""The reduced mode: the FlexKVConnectorV1 that ships inside vLLM, unchanged, over our adapter.

One engine serves all cases. Greedy tokens equal those of a plain engine, blocks are really loaded, and every request's
blocks come back to the engine, also when the daemon dies.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from engine import RealEngine, random_prompt, transfer_config
from scenario import run_scenario
from tiny_model import SMALL, make_model

from flexkv import _core

BLOCK = 32
ARGUMENTS: dict[str, Any] = {
    "block_size": BLOCK,
    "max_model_len": 1024,
    "num_gpu_blocks_override": 64,
    "max_num_batched_tokens": 256,
}
TOKENS = 12
PROMPTS = [random_prompt(random.Random(i), 300) for i in range(4)]


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return make_model(models_dir / "small", SMALL)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    plain: list[list[int]] = run_scenario(
        model,
        None,
        [["generate", PROMPTS, TOKENS]],
        max_num_batched_tokens=256,
        max_model_len=1024,
        block_size=BLOCK,
        enable_prefix_caching=False,
    )[0]
    return plain


@pytest.fixture(scope="module")
def server() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


@pytest.fixture(scope="module")
def engine(model: Path, server: Daemon) -> Iterator[RealEngine]:
    settings = transfer_config(server.socket_path, min_load_tokens=0, load_timeout_ms=500)
    settings["kv_connector"] = "FlexKVConnectorV1"
    del settings["kv_connector_module_path"]
    running = RealEngine(model, settings, **ARGUMENTS)
    yield running
    running.close()


def session(engine: RealEngine) -> Any:
    return engine.connector._flexkv_connector._scheduler.session


def wait_ready(engine: RealEngine) -> None:
    assert session(engine).wait_ready(10_000)


def loaded(engine: RealEngine) -> int:
    return int(session(engine).stats()["loaded_tokens"])


def generate(engine: RealEngine) -> list[list[int]]:
    """All prompts, and then steps until every block that a store held is back."""
    outputs = engine.generate(PROMPTS, TOKENS)
    deadline = time.monotonic() + 5
    while engine.scheduler.has_requests() and time.monotonic() < deadline:
        engine.engine.engine_core.engine_core.step_fn()  # type: ignore[attr-defined]
    assert not engine.scheduler.requests, "a finished request still holds its blocks"
    return outputs


def test_equal_tokens_and_real_hits(engine: RealEngine, expected: list[list[int]]) -> None:
    wait_ready(engine)
    assert generate(engine) == expected
    engine.drop_local_cache()
    before = loaded(engine)
    assert generate(engine) == expected
    assert loaded(engine) - before >= 4 * 288 / 2, "the case must not pass by computing everything"


def test_abort_during_load(engine: RealEngine, expected: list[list[int]]) -> None:
    engine.drop_local_cache()
    _core.arm_faults("agent.slow_chunk")
    try:
        ids = [engine.add(prompt, TOKENS) for prompt in PROMPTS]
        for _ in range(2):
            engine.step()
        for request_id in ids[:2]:
            engine.abort(request_id)
        engine.run()
    finally:
        _core.arm_faults("")
    assert [engine.outputs[request_id] for request_id in ids[2:]] == expected[2:]
    assert generate(engine) == expected


def test_daemon_killed_and_restarted(engine: RealEngine, server: Daemon, expected: list[list[int]]) -> None:
    engine.drop_local_cache()
    ids = [engine.add(prompt, TOKENS) for prompt in PROMPTS]
    for _ in range(3):
        engine.step()
    server.kill()
    engine.run()
    assert [engine.outputs[request_id] for request_id in ids] == expected
    engine.drop_local_cache()
    assert generate(engine) == expected, "without a daemon"
    server.start()
    wait_ready(engine)
    engine.drop_local_cache()
    assert generate(engine) == expected
    engine.drop_local_cache()
    before = loaded(engine)
    assert generate(engine) == expected
    assert loaded(engine) > before


def test_wrong_bytes_would_be_noticed(engine: RealEngine, expected: list[list[int]]) -> None:
    """Last: a flipped exponent can leave an infinity in the engine's memory."""
    engine.drop_local_cache()
    _core.arm_faults("agent.flip_byte")
    try:
        assert generate(engine) != expected
    finally:
        _core.arm_faults("")
