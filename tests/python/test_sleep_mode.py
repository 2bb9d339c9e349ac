from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flexkv.vllm import compat
from flexkv.vllm.sleep_mode import SleepWatch, watch_sleep


class Allocator:
    """Does what vLLM's does with KV memory, as a list of what happened."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def sleep(self, offload_tags: Any = None) -> None:
        self._log.append("gone")

    def discard(self, tags: tuple[str, ...] | str) -> None:
        self._log.append(f"discarded {tags}")

    def wake_up(self, tags: list[str] | None = None) -> None:
        self._log.append("there")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def allocator(log: list[str]) -> Allocator:
    made = Allocator(log)
    watch = SleepWatch(lambda: log.append("leave"), lambda: log.append("open"), lambda *_: log.append("failed"))
    watch.attach(made)
    return made


def test_session_ends_before_memory_goes_and_begins_when_it_is_back(allocator: Allocator, log: list[str]) -> None:
    allocator.sleep(offload_tags=("weights",))
    allocator.wake_up()
    allocator.sleep()
    allocator.wake_up(None)
    assert log == ["leave", "gone", "there", "open"] * 2


def test_weights_alone_do_not_open_it(allocator: Allocator, log: list[str]) -> None:
    allocator.sleep()
    allocator.wake_up(["weights"])
    allocator.wake_up(tags=["kv_cache"])
    assert log == ["leave", "gone", "there", "there", "open"]


def test_waking_without_sleep_opens_nothing(allocator: Allocator, log: list[str]) -> None:
    allocator.wake_up()
    assert log == ["there"]


def test_discarding_kv_memory_is_sleep_too_and_twice_is_once(allocator: Allocator, log: list[str]) -> None:
    allocator.discard(("weights",))
    allocator.discard(("weights", "kv_cache"))
    allocator.discard("kv_cache")
    allocator.sleep()
    assert log == [
        "discarded ('weights',)",
        "leave",
        "discarded ('weights', 'kv_cache')",
        "discarded kv_cache",
        "gone",
    ]


def test_errors_of_ours_do_not_reach_the_engine(log: list[str]) -> None:
    def broken() -> None:
        raise RuntimeError("no")

    allocator = Allocator(log)
    SleepWatch(broken, broken, lambda hook, error: log.append(f"{hook}: {error}")).attach(allocator)
    allocator.sleep()
    allocator.wake_up()
    assert log == ["sleep: no", "gone", "there", "wake_up: no"]


def test_nothing_is_watched_without_sleep_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> Any:
        raise AssertionError("asked for the allocator")

    monkeypatch.setattr(compat, "sleep_allocator", never)
    config = SimpleNamespace(model_config=SimpleNamespace(enable_sleep_mode=False))
    watch_sleep(config, lambda: None, lambda: None, lambda *_: None)


def test_vllm_has_the_allocator_that_is_watched() -> None:
    """The names in this vLLM; the object itself needs a GPU."""
    cumem = pytest.importorskip("vllm.device_allocator.cumem")
    for name in ("sleep", "discard", "wake_up"):
        assert callable(getattr(cumem.CuMemAllocator, name))
