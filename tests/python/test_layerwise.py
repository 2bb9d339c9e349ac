from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flexkv.vllm.layerwise import FlexKVWorkerMetadata, LayerWatch, RecomputedLoads
from flexkv.vllm.sessions import LoadReports, recomputes_itself, set_failure_policy
from flexkv.vllm.settings import Settings


class FakeWorker:
    """Remembers what it is asked to wait for."""

    def __init__(self) -> None:
        self.loads = False
        self.waits: list[str] = []

    def start_layer_loads(self) -> bool:
        return self.loads

    def wait_for_layer(self, name: str) -> None:
        self.waits.append(name)

    def wait_for_all_layers(self) -> None:
        self.waits.append("all")


def watch(never_asks: bool = False) -> tuple[LayerWatch, FakeWorker]:
    worker = FakeWorker()
    made = LayerWatch(worker, never_asks=never_asks)  # type: ignore[arg-type]
    made.expect(["a", "b"])
    return made, worker


def step(made: LayerWatch, worker: FakeWorker, loads: bool, asks: tuple[str, ...] = ("a", "b")) -> list[str]:
    worker.loads, worker.waits = loads, []
    made.start()
    for name in asks:
        if made.watching:
            made.layer(name)
    made.step_done()
    return worker.waits


def test_until_every_layer_has_asked_a_step_waits_for_all_of_them_first() -> None:
    made, worker = watch()
    assert step(made, worker, loads=True, asks=("a",)) == ["all"]
    assert step(made, worker, loads=True, asks=("a",)) == ["all"], "b may be read by something that never asks"
    assert step(made, worker, loads=False) == []
    assert step(made, worker, loads=True) == ["a", "b"]


def test_steps_without_loads_cost_one_look() -> None:
    made, worker = watch()
    step(made, worker, loads=False)
    assert not made.watching
    step(made, worker, loads=True)
    assert not made.watching


def test_where_whole_graphs_are_replayed_nobody_asks() -> None:
    made, worker = watch(never_asks=True)
    assert not made.watching
    assert step(made, worker, loads=True) == ["all"]


def test_new_tensors_are_watched_anew() -> None:
    made, worker = watch()
    step(made, worker, loads=False)
    made.expect(["a", "c"])
    assert step(made, worker, loads=True) == ["all"]


def test_metadata_of_ranks_adds_up() -> None:
    both = FlexKVWorkerMetadata([(1, False)], {4}).aggregate(FlexKVWorkerMetadata([(1, True)], {5}))
    assert both == FlexKVWorkerMetadata([(1, False), (1, True)], {4, 5})


class FakeManager:
    def __init__(self, tables: dict[str, list[int]]) -> None:
        self.tables = tables
        self.freed: list[str] = []
        self.evicted: set[int] = set()

    def get_block_ids(self, request_id: str) -> tuple[list[int]]:
        return (self.tables[request_id],)

    def free(self, request: Any) -> None:
        self.freed.append(request.request_id)

    def evict_blocks(self, blocks: set[int]) -> None:
        self.evicted |= blocks


def request(name: str, finished: bool = False) -> Any:
    return SimpleNamespace(request_id=name, num_computed_tokens=48, is_finished=lambda: finished)


def loads(**tables: list[int]) -> tuple[RecomputedLoads, FakeManager]:
    manager = FakeManager(tables)
    made = RecomputedLoads(16)
    made.bind(manager)
    return made, manager


def test_computed_tokens_end_before_the_first_block_that_did_not_arrive() -> None:
    made, manager = loads(r=[7, 8, 9], s=[1, 2, 3])
    r, s = request("r"), request("s")
    made.started(r)
    made.started(s)
    made.note_failed({9})
    made.note_failed({8, 9})  # another rank
    assert made.ended("r")
    assert (r.num_computed_tokens, manager.freed) == (16, [])
    assert not made.ended("s")
    assert s.num_computed_tokens == 48
    assert not made.ended("r"), "once"


def test_without_any_valid_block_the_request_starts_anew() -> None:
    made, manager = loads(r=[7, 8, 9])
    r = request("r")
    made.started(r)
    made.note_failed({7})
    assert made.ended("r")
    assert (r.num_computed_tokens, manager.freed) == (0, ["r"])


def test_a_request_that_is_over_is_left_alone() -> None:
    made, manager = loads(r=[7, 8, 9])
    r = request("r", finished=True)
    made.started(r)
    made.note_failed({7})
    assert made.ended("r")
    assert (r.num_computed_tokens, manager.freed) == (48, [])


def test_what_a_failed_layerwise_load_left_is_found_by_nobody() -> None:
    made, manager = loads()
    made.evict("r", [3, 4, 4])
    assert manager.evicted == {3, 4}


@pytest.mark.parametrize(
    ("policy", "settings", "expected", "own"),
    [
        ("fail", Settings(), "recompute", False),
        ("recompute", Settings(), "recompute", False),
        ("fail", Settings(allow_fail_policy=True), "fail", False),
        ("recompute", Settings(layerwise_loads=True), "fail", True),
        ("fail", Settings(layerwise_loads=True, allow_fail_policy=True), "fail", False),
    ],
)
def test_policy_for_failed_loads(policy: str, settings: Settings, expected: str, own: bool) -> None:
    transfer = SimpleNamespace(kv_load_failure_policy=policy)
    set_failure_policy(transfer, settings)
    assert transfer.kv_load_failure_policy == expected
    assert recomputes_itself(settings) == own


class FakeSession:
    def __init__(self, *polls: Any) -> None:
        self._polls = list(polls)

    def poll(self) -> Any:
        return self._polls.pop(0)


def test_reports_of_a_worker_go_to_vllm_or_to_the_schedulers_side() -> None:
    polls = [(["r"], [1, 2], [(9, True)], [5]), ([], [3], [], []), ([], [], [], [])]
    for own, to_vllm, told in [
        (False, {1, 2, 3, 5}, FlexKVWorkerMetadata([(9, True)], set())),
        (True, {5}, FlexKVWorkerMetadata([(9, True)], {1, 2, 3})),
    ]:
        reports = LoadReports(recomputes_itself=own)
        session: Any = FakeSession(*polls)
        assert reports.poll(session) == {"r"}
        assert reports.poll(session) is None
        assert reports.take_failed_blocks() == to_vllm
        assert reports.take_metadata() == told
        assert reports.poll(session) is None
        assert reports.take_metadata() is None
