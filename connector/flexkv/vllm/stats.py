"""Counters of the connector in vLLM's own log line and Prometheus page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flexkv.vllm.compat import KVConnectorPromMetrics, KVConnectorStats

# name -> help; all are counters that only rise
SCHEDULER_COUNTERS = {
    "lookups": "Lookups sent to the daemon",
    "lookup_timeouts": "Lookups that were not answered in time",
    "breaker_opens": "Times the daemon was given up until it answers again",
    "loads": "Loads started",
    "load_failures": "Loads that failed and were recomputed",
    "layer_loads": "Loads that arrived layer by layer while the engine computed with them",
    "layer_loads_failed": "Of those begun, loads that failed, and their requests with them",
    "puts": "Stores offered to the daemon",
    "put_blocks": "Blocks offered to the daemon",
    "fenced_blocks": "Stores dropped because their source block got a new owner",
    "short_hits_skipped": "Hits too short to be worth a load",
    "stampede_waits": "Requests that waited for another request's load of the same prefix",
    "prompt_tokens": "Prompt tokens of all requests",
    "engine_matched_tokens": "Prompt tokens found in the engine's own cache",
    "offered_tokens": "Prompt tokens the daemon holds beyond those",
    "taken_tokens": "Of them, tokens that the engine took",
    "loaded_tokens": "Of them, tokens that arrived",
    "failed_tokens": "Of them, tokens that did not arrive",
    "swallowed_errors": "Exceptions that did not reach the engine",
    "bad_hints": "Hints in kv_transfer_params that could not be used",
}
WORKER_COUNTERS = {
    "load_bytes": "Bytes copied to the engine",
    "store_bytes": "Bytes copied from the engine",
    "load_timeouts": "Loads given up because they took too long",
}
COUNTERS = {**SCHEDULER_COUNTERS, **WORKER_COUNTERS}


@dataclass
class FlexKVStats(KVConnectorStats):  # type: ignore[misc]
    """Increments since the last report, by counter."""

    data: dict[str, Any] = field(default_factory=dict)

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, value in other.data.items():
            self.data[name] = self.data.get(name, 0) + value
        return self

    def reduce(self) -> dict[str, int | float]:
        shown: dict[str, int | float] = {name: value for name, value in self.data.items() if value}
        prompt = self.data.get("prompt_tokens", 0)
        if prompt:
            shown["hit_rate"] = round(self.data.get("loaded_tokens", 0) / prompt, 3)
        return shown

    def is_empty(self) -> bool:
        return not any(self.data.values())


class Increments:
    """Turns totals into increments, at most one report per interval: hooks that report run at every step."""

    def __init__(self, counters: dict[str, str], interval_s: float = 0.5) -> None:
        self._last = dict.fromkeys(counters, 0)
        self._interval_s = interval_s
        self._next_at = 0.0

    def due(self, now: float) -> bool:
        return now >= self._next_at

    def take(self, totals: dict[str, Any], now: float) -> FlexKVStats | None:
        self._next_at = now + self._interval_s
        data: dict[str, Any] = {}
        for name, last in self._last.items():
            total = int(totals.get(name, last))
            if total > last:
                data[name] = total - last
                self._last[name] = total
        return FlexKVStats(data=data) if data else None


class FlexKVPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """One counter `vllm:flexkv_<name>` per engine."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, dict[int, Any]] = {}
        for name, text in COUNTERS.items():
            metric = self._counter_cls(name=f"vllm:flexkv_{name}", documentation=text, labelnames=labelnames)
            self._counters[name] = {engine: metric.labels(*values) for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            counter = self._counters.get(name, {}).get(engine_idx)
            if counter is not None and value > 0:
                counter.inc(value)
