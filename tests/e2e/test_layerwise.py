"""A real vLLM on CPU with layer-wise loads: it computes with the first layers of a hit while the last ones arrive.

Its tokens equal those of a plain engine, or the request ends with an error: never anything in between.
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
TOKENS = 12
ARGUMENTS: dict[str, Any] = {
    "block_size": BLOCK,
    "max_model_len": 1024,
    "num_gpu_blocks_override": 64,
    "max_num_batched_tokens": 256,
}
PROMPTS = {
    "plain": [random_prompt(random.Random(i), 300) for i in range(4)],
    "shared": [
        [*random_prompt(random.Random(30 + i % 3), 200), *random_prompt(random.Random(40 + i), 40)] for i in range(12)
    ],
    "whole blocks": [random_prompt(random.Random(80 + i), (1 + i) * BLOCK) for i in range(4)],
}


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return make_model(models_dir / "small", SMALL)


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, list[list[int]]]:
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
    settings = transfer_config(
        server.socket_path, min_load_tokens=0, load_timeout_ms=500, layerwise_loads=True, layerwise_wait_ms=200
    )
    running = RealEngine(model, settings, **ARGUMENTS)
    yield running
    running.close()


@pytest.fixture
def engine(shared_engine: RealEngine, server: Daemon) -> Iterator[RealEngine]:
    shared_engine.wait_ready()
    assert shared_engine.connector.reset_cache()
    shared_engine.drop_local_cache()
    shared_engine.errored.clear()
    yield shared_engine
    _core.arm_faults("")
    shared_engine.run()


def fill(engine: RealEngine, name: str) -> None:
    engine.generate(PROMPTS[name], TOKENS)
    time.sleep(0.3)
    engine.drop_local_cache()


def counts(engine: RealEngine) -> tuple[int, int]:
    stats = engine.stats()
    return int(stats["layer_loads"]), int(stats["layer_loads_failed"])


def test_equal_tokens(engine: RealEngine, expected: dict[str, Any]) -> None:
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    time.sleep(0.3)
    engine.drop_local_cache()
    loads, failed = counts(engine)
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    assert counts(engine) == (loads + 4, failed)
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    worker: Any = get_kv_transfer_group()
    assert not worker._worker.layers._unseen, "every layer of a real model asks for its bytes"


def test_eviction_pressure_in_both_caches(engine: RealEngine, expected: dict[str, Any]) -> None:
    loads, failed = counts(engine)
    for seed in range(3):
        order = list(range(12))
        random.Random(seed).shuffle(order)
        outputs = engine.generate([PROMPTS["shared"][i] for i in order], TOKENS)
        assert outputs == [expected["shared"][i] for i in order]
        assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]  # pushes the others out
    assert counts(engine)[0] > loads
    assert counts(engine)[1] == failed


def test_beside_asynchronous_loads(engine: RealEngine, expected: dict[str, Any]) -> None:
    """A hit of one block that is the whole prompt leaves nothing to compute: it is loaded as ever."""
    fill(engine, "whole blocks")
    before = engine.stats()
    assert engine.generate(PROMPTS["whole blocks"], TOKENS) == expected["whole blocks"]
    after = engine.stats()
    assert after["layer_loads"] - before["layer_loads"] == 3
    assert after["loads"] - before["loads"] == 4


def test_failed_loads_end_their_requests(engine: RealEngine, expected: dict[str, Any], seed: int) -> None:
    fill(engine, "shared")
    _, failed = counts(engine)
    _core.arm_faults(f"agent.fail_op:3:{seed}")
    for name in ("shared", "plain"):
        ids = [engine.add(tokens, TOKENS) for tokens in PROMPTS[name]]
        engine.run()
        engine.drop_local_cache()
        for request_id, tokens in zip(ids, expected[name], strict=True):
            assert request_id in engine.errored or engine.outputs[request_id] == tokens
    _core.arm_faults("")
    assert counts(engine)[1] > failed
    assert engine.errored
    engine.errored.clear()
    assert engine.generate(PROMPTS["shared"], TOKENS) == expected["shared"], "nothing wrong was kept anywhere"
    engine.drop_local_cache()
    assert engine.generate(PROMPTS["shared"], TOKENS) == expected["shared"], "nor stored"
    assert not engine.errored


def test_asynchronous_loads_that_fail_are_computed(engine: RealEngine, expected: dict[str, Any]) -> None:
    fill(engine, "whole blocks")
    _core.arm_faults("agent.fail_op")
    assert engine.generate(PROMPTS["whole blocks"][:1], TOKENS) == expected["whole blocks"][:1]
    assert not engine.errored


def test_a_daemon_that_stands_still(engine: RealEngine, server: Daemon, expected: dict[str, Any]) -> None:
    fill(engine, "plain")
    matched = engine.connector.get_num_new_matched_tokens

    def stop_behind_the_answer(request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        answer: tuple[int | None, bool] = matched(request, num_computed_tokens)
        if answer[0]:
            server.pause()
        return answer

    engine.connector.get_num_new_matched_tokens = stop_behind_the_answer
    began = time.monotonic()
    ids = [engine.add(tokens, TOKENS) for tokens in PROMPTS["plain"]]
    engine.run()
    assert time.monotonic() - began < 10
    engine.connector.get_num_new_matched_tokens = matched
    server.resume()
    assert engine.errored
    for request_id, tokens in zip(ids, expected["plain"], strict=True):
        assert request_id in engine.errored or engine.outputs[request_id] == tokens
    engine.errored.clear()
    engine.wait_ready()
    assert engine.generate(PROMPTS["plain"], TOKENS) == expected["plain"]
    assert not engine.errored
