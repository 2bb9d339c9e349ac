"""A real vLLM on CPU in float32: greedy tokens with the cache equal those of a plain engine, whatever happens.

One engine serves all cases of this file. Its own cache is small, so that prefixes leave it.
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

PROMPTS = {
    "plain": [random_prompt(random.Random(i), 300) for i in range(4)],
    "stampede": [[*random_prompt(random.Random(20), 256), i + 3] for i in range(16)],
    "shared": [
        [*random_prompt(random.Random(30 + i % 3), 200), *random_prompt(random.Random(40 + i), 40)] for i in range(12)
    ],
    "preempted": [random_prompt(random.Random(60 + i), 120) for i in range(10)],
}


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return make_model(models_dir / "small", SMALL)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[list[int]]]:
    """Tokens of an engine without connector and without prefix caching."""
    results = run_scenario(
        model,
        None,
        [["generate", prompts, TOKENS] for prompts in PROMPTS.values()],
        max_num_batched_tokens=256,
        max_model_len=1024,
        block_size=BLOCK,
        enable_prefix_caching=False,
    )
    return dict(zip(PROMPTS, results, strict=True))


@pytest.fixture(scope="module")
def server() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


@pytest.fixture(scope="module")
def shared_engine(model: Path, server: Daemon) -> Iterator[RealEngine]:
    settings = transfer_config(server.socket_path, min_load_tokens=0, load_timeout_ms=500)
    running = RealEngine(model, settings, **ARGUMENTS)
    yield running
    running.close()


@pytest.fixture
def engine(shared_engine: RealEngine, server: Daemon) -> Iterator[RealEngine]:
    if server.process is None:
        server.start()
    shared_engine.wait_ready()
    assert shared_engine.connector.reset_cache()
    shared_engine.drop_local_cache()
    yield shared_engine
    _core.arm_faults("")
    shared_engine.run()


def settle() -> None:
    time.sleep(0.3)


def loaded(engine: RealEngine) -> int:
    return int(engine.stats()["loaded_tokens"])


def fill(engine: RealEngine, name: str) -> None:
    engine.generate(PROMPTS[name], TOKENS)
    settle()
    engine.drop_local_cache()


def check_hits(engine: RealEngine, before: int, reusable: int) -> None:
    assert loaded(engine) - before >= reusable / 2, "the case must not pass by computing everything"


def test_equal_tokens_and_real_hits(engine: RealEngine, expected: dict[str, Any]) -> None:
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    settle()
    engine.drop_local_cache()
    before = loaded(engine)
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    check_hits(engine, before, 4 * 288)


def test_eviction_pressure_in_both_caches(engine: RealEngine, expected: dict[str, Any]) -> None:
    for seed in range(3):
        order = list(range(12))
        random.Random(seed).shuffle(order)
        outputs = engine.generate([PROMPTS["shared"][i] for i in order], TOKENS)
        assert outputs == [expected["shared"][i] for i in order]
    assert loaded(engine) > 0


def test_stampede_loads_the_prefix_once(engine: RealEngine, expected: dict[str, Any]) -> None:
    engine.generate(PROMPTS["stampede"][:1], TOKENS)
    settle()
    engine.drop_local_cache()
    before = engine.stats()["worker"]["load_bytes"]
    block_bytes = SMALL.layers * SMALL.kv_heads * 2 * SMALL.head_dim * 4 * BLOCK
    assert engine.generate(PROMPTS["stampede"], TOKENS) == expected["stampede"]
    bytes_loaded = engine.stats()["worker"]["load_bytes"] - before
    assert 0.5 * 8 * block_bytes <= bytes_loaded <= 1.1 * 8 * block_bytes


def test_salts_are_isolated(engine: RealEngine, expected: dict[str, Any]) -> None:
    engine.generate(PROMPTS["plain"], TOKENS, "tenant a")
    settle()
    engine.drop_local_cache()
    before = loaded(engine)
    assert engine.generate(PROMPTS["plain"], TOKENS, "tenant b") == expected["plain"]
    assert loaded(engine) == before
    engine.drop_local_cache()
    assert engine.generate(PROMPTS["plain"], TOKENS, "tenant a") == expected["plain"]
    check_hits(engine, before, 4 * 288)


def test_aborts_during_loads(engine: RealEngine, expected: dict[str, Any]) -> None:
    fill(engine, "plain")
    _core.arm_faults("agent.slow_chunk")
    for steps in range(6):
        ids = [engine.add(prompt, TOKENS) for prompt in PROMPTS["plain"]]
        for _ in range(steps):
            engine.step()
        for request_id in ids[::2]:
            engine.abort(request_id)
        engine.run()
        assert [engine.outputs[i] for i in ids[1::2]] == expected["plain"][1::2]
        engine.drop_local_cache()


def test_forced_preemption(engine: RealEngine, expected: dict[str, Any]) -> None:
    """Ten requests of five blocks each that grow past the pool of 64."""
    fill(engine, "preempted")
    before = loaded(engine)
    many = [*PROMPTS["preempted"], *PROMPTS["shared"][:5]]
    outputs = engine.generate(many, TOKENS)
    assert outputs == [*expected["preempted"], *expected["shared"][:5]]
    check_hits(engine, before, 10 * 96)


def test_failing_loads(engine: RealEngine, expected: dict[str, Any]) -> None:
    fill(engine, "plain")
    _core.arm_faults("agent.fail_op:2:7")
    for _ in range(3):
        assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
        engine.drop_local_cache()
    assert engine.stats()["load_failures"] > 0


def longest_wait(engine: RealEngine, prompts: list[list[int]]) -> tuple[list[list[int]], float]:
    """Outputs, and the longest time one scheduling round spent in our hooks."""
    hooks = ("on_new_request", "get_num_new_matched_tokens", "update_state_after_alloc", "build_connector_meta")
    spent = 0.0
    longest = 0.0
    saved = {hook: getattr(engine.connector, hook) for hook in hooks}

    def watch(hook: str) -> Any:
        def call(*values: Any) -> Any:
            nonlocal spent, longest
            start = time.monotonic()
            result = saved[hook](*values)
            spent += time.monotonic() - start
            if hook == "build_connector_meta":
                longest, spent = max(longest, spent), 0.0
            return result

        return call

    for hook in hooks:
        setattr(engine.connector, hook, watch(hook))
    try:
        return engine.generate(prompts, TOKENS), longest
    finally:
        for hook in hooks:
            delattr(engine.connector, hook)


def test_daemon_killed_under_load(engine: RealEngine, server: Daemon, expected: dict[str, Any]) -> None:
    fill(engine, "plain")
    _core.arm_faults("agent.slow_chunk")
    ids = [engine.add(prompt, TOKENS) for prompt in PROMPTS["plain"]]
    engine.step()
    server.kill()
    engine.run()
    assert [engine.outputs[i] for i in ids] == expected["plain"]
    engine.drop_local_cache()
    outputs, wait = longest_wait(engine, PROMPTS["plain"])
    assert outputs == expected["plain"]
    assert wait < 0.05
    server.start()
    start = time.monotonic()
    engine.wait_ready()
    assert time.monotonic() - start < 1.0


def test_daemon_stopped_and_continued(engine: RealEngine, server: Daemon, expected: dict[str, Any]) -> None:
    fill(engine, "plain")
    _core.arm_faults("agent.slow_chunk")
    ids = [engine.add(prompt, TOKENS) for prompt in PROMPTS["plain"]]
    engine.step()
    server.pause()
    try:
        engine.run()
        assert [engine.outputs[i] for i in ids] == expected["plain"]
        engine.drop_local_cache()
        outputs, wait = longest_wait(engine, PROMPTS["shared"])
        assert outputs == expected["shared"]
        assert wait < 0.05
    finally:
        server.resume()
    _core.arm_faults("")
    engine.drop_local_cache()
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]


def test_reset_prefix_cache_resets_the_daemon(engine: RealEngine, expected: dict[str, Any]) -> None:
    engine.generate(PROMPTS["plain"], TOKENS)
    settle()
    assert engine.engine.reset_prefix_cache(reset_connector=True)
    before = loaded(engine)
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    assert loaded(engine) == before


def test_negative_control(engine: RealEngine, expected: dict[str, Any]) -> None:
    """Wrong bytes make the comparison fail, so it can be trusted when it does not.

    A flipped byte in each layer; two blocks that changed places would not show here, since keys carry their position
    and attention does not care about order (the harness sees that fault). Last in this file: a flipped exponent can
    leave an infinity in the engine's memory, which a later request that gets the block multiplies by zero.
    """
    fill(engine, "plain")
    _core.arm_faults("agent.flip_byte")
    before = loaded(engine)
    assert engine.generate(PROMPTS["plain"], TOKENS) != expected["plain"]
    check_hits(engine, before, 4 * 288)
