"""The connector between vLLM's real scheduler and a played forward pass (see harness.py)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from harness import VOCAB, Engine, make_config
from kv_layouts import LAYOUTS

from flexkv import _core

MakeEngine = Callable[..., Engine]


@pytest.fixture(params=["v1", "v2"])
def runner(request: pytest.FixtureRequest) -> str:
    """Which model runner is played. The scheduler tells them in different ways of requests that come back."""
    return str(request.param)


@pytest.fixture
def make_engine(request: pytest.FixtureRequest, daemon: Daemon, models_dir: Path) -> Iterator[MakeEngine]:
    v2_runner = "runner" in request.fixturenames and request.getfixturevalue("runner") == "v2"
    engines: list[Engine] = []

    def make(rng: random.Random | None = None, engine: dict[str, Any] | None = None, **config: Any) -> Engine:
        depth = (engine or {}).get("depth", 1)
        vllm_config = make_config(models_dir / "small", daemon.socket_path, async_scheduling=depth > 1, **config)
        engines.append(Engine(vllm_config, rng=rng, v2_runner=v2_runner, **(engine or {})))
        engines[-1].wait_ready()
        return engines[-1]

    yield make
    _core.arm_faults("")
    for engine in engines:
        engine.close()


def prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCAB) for _ in range(length)]


def settle(daemon: Daemon, engine: Engine) -> None:
    """Until no copy is under way."""
    deadline = time.monotonic() + 10
    last = -1
    while time.monotonic() < deadline:
        stores = engine.worker._worker.totals()["stores"]
        if stores == last:
            return
        last = stores
        time.sleep(0.1)


def store(engine: Engine, daemon: Daemon, request_id: str, tokens: list[int]) -> None:
    """The prompt is computed and stored, and only the daemon has it then."""
    engine.add(request_id, tokens)
    engine.run()
    settle(daemon, engine)
    engine.drop_local_cache()


def test_a_prefix_that_left_the_local_cache_is_loaded(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    engine = make_engine()
    tokens = prompt(random.Random(1), 200)
    store(engine, daemon, "first", tokens)
    engine.add("second", tokens)
    engine.run()
    assert engine.outputs["first"] == engine.outputs["second"]
    assert engine.stats()["loaded_tokens"] == 192  # whole blocks of the prompt
    engine.check_promises()


def test_salts_keep_requests_apart(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    engine = make_engine()
    tokens = prompt(random.Random(2), 100)
    engine.add("a", tokens, salt="tenant a")
    engine.run()
    settle(daemon, engine)
    engine.drop_local_cache()
    engine.add("b", tokens, salt="tenant b")
    engine.run()
    assert engine.stats()["loaded_tokens"] == 0
    engine.add("a again", tokens, salt="tenant a")
    engine.run()
    assert engine.stats()["loaded_tokens"] == 96


def test_hints_reach_the_daemon_and_bad_ones_cost_nothing(tmp_path: Path, models_dir: Path) -> None:
    hints: dict[str, Any] = {
        "none": None,
        "both": {"continue_p": 0.75, "expected_in_s": 12},
        "bad": {"continue_p": "soon"},
        "worse": 7,
        "one": {"continue_p": 0},
    }
    with Daemon(trace=True) as daemon:
        engine = Engine(make_config(models_dir / "small", daemon.socket_path))
        engine.wait_ready()
        for i, (name, hint) in enumerate(hints.items()):
            engine.add(name, prompt(random.Random(70 + i), 60 + 16 * i), hint=hint)
        engine.run()
        assert engine.stats()["bad_hints"] == 2
        engine.check_promises()
        engine.close()
        daemon.stop()
        found = {get["prompt"]: (get.get("continue_p"), get.get("expected_in_s")) for get in daemon.records("get")}
    assert found == {60: (None, None), 76: (0.75, 12), 92: (None, None), 108: (None, None), 124: (0, None)}


def test_two_engines_share(make_engine: MakeEngine, daemon: Daemon) -> None:
    tokens = prompt(random.Random(3), 160)
    first, second = make_engine(), make_engine(num_blocks=48)
    first.add("r", tokens)
    first.run()
    settle(daemon, first)
    second.add("r", tokens)
    second.run()
    assert second.stats()["loaded_tokens"] == 160 - 16 or second.stats()["loaded_tokens"] == 160
    assert first.outputs == second.outputs


def test_reset_forgets(make_engine: MakeEngine, daemon: Daemon) -> None:
    engine = make_engine()
    tokens = prompt(random.Random(4), 100)
    engine.add("before", tokens)
    engine.run()
    settle(daemon, engine)
    assert engine.scheduler.reset_prefix_cache(reset_connector=True)
    engine.add("after", tokens)
    engine.run()
    assert engine.stats()["loaded_tokens"] == 0


@pytest.mark.parametrize("fault", ["agent.swap_blocks", "agent.flip_byte"])
def test_negative_control(make_engine: MakeEngine, daemon: Daemon, fault: str) -> None:
    """The check of this harness sees what it is there to see."""
    engine = make_engine()
    tokens = prompt(random.Random(5), 100)
    store(engine, daemon, "first", tokens)
    _core.arm_faults(fault)
    engine.add("second", tokens)
    with pytest.raises(AssertionError, match="is not what was computed"):
        engine.run()


def test_failed_loads_are_recomputed(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    engine = make_engine()
    tokens = prompt(random.Random(6), 100)
    store(engine, daemon, "first", tokens)
    _core.arm_faults("agent.fail_op")
    engine.add("second", tokens)
    engine.run()
    assert engine.outputs["first"] == engine.outputs["second"]
    assert engine.failed_blocks > 0
    engine.check_promises()


def test_one_load_for_a_stampede(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    engine = make_engine(num_blocks=256, max_num_batched_tokens=512)
    tokens = prompt(random.Random(7), 320)
    store(engine, daemon, "first", tokens)
    for i in range(8):
        engine.add(f"r{i}", [*tokens, i])
    engine.run()
    assert engine.stats()["loaded_tokens"] <= 1.1 * 320
    engine.check_promises()


FAULTS = ["", "agent.slow_chunk:4:{seed}", "agent.fail_op:6:{seed}", "agent.slow_chunk:3:{seed},agent.fail_op:9:{seed}"]


def workload(engine: Engine, rng: random.Random, requests: int, abort_share: float) -> None:
    """Chats that share system prompts and grow, more of them than any cache holds, some given up at random moments."""
    systems = [prompt(rng, rng.randrange(20, 90)) for _ in range(3)]
    chats: list[list[int]] = []
    started: list[str] = []
    while requests > 0 or engine.busy():
        if requests > 0 and rng.random() < 0.15:
            requests -= 1
            if chats and rng.random() < 0.6:
                tokens = rng.choice(chats)
                tokens += prompt(rng, rng.randrange(1, 40))
            else:
                tokens = [*rng.choice(systems), *prompt(rng, rng.randrange(1, 60))]
                chats.append(tokens)
            del tokens[600:]
            name = f"r{len(started)}"
            started.append(name)
            engine.add(name, list(tokens), max_tokens=rng.randrange(1, 30), salt=rng.choice([None, None, "s"]))
        if started and rng.random() < abort_share:
            engine.abort(rng.choice(started))
        if rng.random() < 0.01 and not engine.queue:
            engine.scheduler.reset_prefix_cache()
        engine.step()


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_random_histories(
    make_engine: MakeEngine, daemon: Daemon, runner: str, seed: int, depth: int, faults: str
) -> None:
    """A block pool so small that requests are preempted and blocks change owners all the time."""
    rng = random.Random(seed)
    engine = make_engine(rng, {"depth": depth, "layout": rng.choice(LAYOUTS)}, num_blocks=56, max_num_batched_tokens=96)
    _core.arm_faults(faults.format(seed=seed))
    workload(engine, rng, requests=60, abort_share=0.02)
    engine.check_promises()
    stats = engine.stats()
    assert stats["loads"] > 0
    assert stats["puts"] > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_sliding_window(make_engine: MakeEngine, daemon: Daemon, seed: int, depth: int) -> None:
    """The engine gives blocks back while a request runs: their ids then belong to others."""
    rng = random.Random(seed)
    engine = make_engine(rng, {"depth": depth, "sliding_window": 48}, num_blocks=40, max_num_batched_tokens=64)
    workload(engine, rng, requests=40, abort_share=0.01)
    engine.check_promises()
    assert engine.stats()["puts"] > 0


@pytest.mark.parametrize("depth", [1, 2])
def test_daemon_dies_stops_and_comes_back(
    make_engine: MakeEngine, daemon: Daemon, runner: str, seed: int, depth: int
) -> None:
    rng = random.Random(seed)
    engine = make_engine(
        rng,
        {"depth": depth},
        num_blocks=56,
        max_num_batched_tokens=96,
        extra={"flexkv.load_timeout_ms": 300, "flexkv.lookup_timeout_ms": 20, "flexkv.lookup_wait_us": 100},
    )
    _core.arm_faults(f"agent.slow_chunk:5:{seed}")
    for _ in range(3):
        workload(engine, rng, requests=8, abort_share=0.02)
        for i in range(6):
            engine.add(f"load {i}", prompt(rng, 150))
        for _ in range(rng.randrange(20)):
            engine.step()
        if rng.random() < 0.5:
            daemon.kill()
            engine.run()
            daemon.start()
        else:
            daemon.pause()
            engine.run()
            daemon.resume()
        engine.wait_ready()
    workload(engine, rng, requests=8, abort_share=0.02)
    engine.check_promises()


# --- layouts, new tensors -----------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mla", [False, True])
def test_every_layout_brings_its_bytes_back(make_engine: MakeEngine, daemon: Daemon, layout: str, mla: bool) -> None:
    engine = make_engine(engine={"layout": layout, "mla": mla, "block_padding": 128 if layout[0] == "B" else 0})
    round_trip(engine, daemon)


def test_kernel_blocks_smaller_than_blocks(make_engine: MakeEngine, daemon: Daemon) -> None:
    round_trip(make_engine(engine={"kernel_tokens": 8}), daemon)


def round_trip(engine: Engine, daemon: Daemon) -> None:
    tokens = prompt(random.Random(8), 200)
    store(engine, daemon, "first", tokens)
    engine.add("second", tokens)
    engine.run()
    assert engine.outputs["first"] == engine.outputs["second"]
    assert engine.stats()["loaded_tokens"] == 192
    engine.check_promises()


def test_new_tensors_after_sleep(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    """The engine's memory was given back and made anew: the old session ends, a new one loads into the new tensors."""
    engine = make_engine()
    tokens = prompt(random.Random(9), 200)
    engine.add("before", tokens)
    engine.run()
    settle(daemon, engine)
    old = engine.cells
    for attempt in range(2):
        engine.drop_local_cache()
        engine.new_tensors()
        before = [cells.copy() for cells in old]
        deadline = time.monotonic() + 10
        while engine.worker._worker.totals()["attached"] is False and time.monotonic() < deadline:
            time.sleep(0.01)
        engine.wait_ready()
        engine.add(f"after {attempt}", tokens)
        engine.run()
        assert engine.outputs[f"after {attempt}"] == engine.outputs["before"]
        for cells, copy in zip(old, before, strict=True):
            assert (cells == copy).all(), "the tensors of before are not touched"
        settle(daemon, engine)
    assert engine.stats()["loaded_tokens"] > 0
    engine.check_promises()


def test_new_tensors_while_loads_are_under_way(make_engine: MakeEngine, daemon: Daemon, runner: str) -> None:
    engine = make_engine()
    tokens = prompt(random.Random(10), 200)
    store(engine, daemon, "before", tokens)
    _core.arm_faults("agent.slow_chunk:1")
    engine.add("during", tokens)
    for _ in range(50):
        engine.step()
        if engine.promises["during"]:
            break
    assert engine.promises["during"] == 1
    engine.new_tensors()
    _core.arm_faults("")
    engine.run()
    assert engine.outputs["during"] == engine.outputs["before"]
    engine.check_promises()


# --- layer-wise loads ---------------------------------------------------------------------------

LAYERWISE = {"flexkv.layerwise_loads": True, "flexkv.layerwise_wait_ms": 500}


@pytest.mark.parametrize("depth", [1, 2])
def test_layerwise_loads(make_engine: MakeEngine, daemon: Daemon, runner: str, depth: int) -> None:
    engine = make_engine(engine={"depth": depth}, extra=LAYERWISE)
    tokens = prompt(random.Random(11), 192)
    store(engine, daemon, "first", tokens)
    steps = engine.steps
    engine.add("second", tokens, max_tokens=1)
    engine.run()
    assert engine.steps - steps <= 1 + 2 * depth, "computed in the step that loads"
    assert engine.outputs["second"] == engine.outputs["first"][:1]
    stats = engine.stats()
    assert (stats["layer_loads"], stats["layer_loads_failed"]) == (1, 0)
    assert stats["loaded_tokens"] == 176  # the last block is computed: one token has to be
    assert not engine.promises
    assert not engine.errored
    engine.check_promises()


def test_layers_are_waited_for_one_by_one_once_all_were_seen_to_ask(
    make_engine: MakeEngine, daemon: Daemon, runner: str
) -> None:
    engine = make_engine(extra=LAYERWISE)
    watch = engine.worker._worker.layers
    assert watch.watching
    engine.add("first", prompt(random.Random(12), 100))
    engine.run()
    assert not watch.watching, "every layer has asked, and no load is under way"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_layerwise_load_that_fails_ends_its_request(
    make_engine: MakeEngine, daemon: Daemon, runner: str, depth: int
) -> None:
    engine = make_engine(engine={"depth": depth}, extra=LAYERWISE)
    tokens = prompt(random.Random(13), 200)
    store(engine, daemon, "first", tokens)
    _core.arm_faults("agent.fail_op")
    engine.add("second", tokens)
    engine.run()
    _core.arm_faults("")
    assert engine.errored == {"second"}
    assert engine.stats()["layer_loads_failed"] == 1
    engine.add("third", tokens)  # nothing that the failed one left behind is found
    engine.run()
    assert engine.outputs["third"] == engine.outputs["first"]
    assert engine.errored == {"second"}
    engine.check_promises()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_daemon_that_stands_still_costs_a_bounded_wait(
    make_engine: MakeEngine, daemon: Daemon, runner: str, depth: int
) -> None:
    engine = make_engine(engine={"depth": depth}, extra={**LAYERWISE, "flexkv.layerwise_wait_ms": 30})
    tokens = prompt(random.Random(14), 200)
    store(engine, daemon, "first", tokens)
    matched = engine.connector.get_num_new_matched_tokens

    def stop_behind_the_answer(request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        answer: tuple[int | None, bool] = matched(request, num_computed_tokens)
        if answer[0]:
            daemon.pause()
        return answer

    engine.connector.get_num_new_matched_tokens = stop_behind_the_answer
    engine.add("second", tokens)
    began = time.monotonic()
    engine.run()
    assert time.monotonic() - began < 5
    engine.connector.get_num_new_matched_tokens = matched
    daemon.resume()
    assert engine.errored == {"second"}
    engine.add("third", tokens)
    engine.run()
    assert engine.outputs["third"] == engine.outputs["first"]
    engine.check_promises()


@pytest.mark.parametrize("depth", [1, 2])
def test_asynchronous_loads_that_fail_are_computed_beside_layerwise_ones(
    make_engine: MakeEngine, daemon: Daemon, runner: str, depth: int
) -> None:
    """The policy is "fail" for layer-wise loads only."""
    engine = make_engine(engine={"depth": depth}, extra=LAYERWISE)
    tokens = prompt(random.Random(15), 17)  # one block and one token: layer-wise; one block alone: asynchronous
    engine.add("first", tokens[:16])
    engine.run()
    settle(daemon, engine)
    engine.drop_local_cache()
    _core.arm_faults("agent.fail_op")
    engine.add("second", tokens[:16])
    engine.run()
    assert engine.promises["second"] == 1, "nothing would be left to compute: an asynchronous load"
    assert engine.stats()["load_failures"] == 1
    assert engine.outputs["second"] == engine.outputs["first"]
    assert not engine.errored
    engine.check_promises()


@pytest.mark.parametrize("faults", FAULTS)
@pytest.mark.parametrize("depth", [1, 2])
def test_random_histories_with_layerwise_loads(
    make_engine: MakeEngine, daemon: Daemon, runner: str, seed: int, depth: int, faults: str
) -> None:
    rng = random.Random(seed)
    engine = make_engine(
        rng,
        {"depth": depth, "layout": rng.choice(LAYOUTS)},
        num_blocks=56,
        max_num_batched_tokens=96,
        extra=LAYERWISE,
    )
    _core.arm_faults(faults.format(seed=seed))
    workload(engine, rng, requests=60, abort_share=0.02)
    engine.check_promises()
    stats = engine.stats()
    assert stats["layer_loads"] > 0
    assert stats["puts"] > 0
    if "fail_op" not in faults:
        assert not engine.errored


@pytest.mark.parametrize("depth", [1, 2])
def test_layerwise_loads_of_a_sliding_window(make_engine: MakeEngine, daemon: Daemon, seed: int, depth: int) -> None:
    rng = random.Random(seed)
    engine = make_engine(
        rng, {"depth": depth, "sliding_window": 48}, num_blocks=40, max_num_batched_tokens=64, extra=LAYERWISE
    )
    workload(engine, rng, requests=40, abort_share=0.01)
    engine.check_promises()
    assert engine.stats()["puts"] > 0
