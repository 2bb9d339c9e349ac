"""One result beside its limit, in the form that the C++ benchmarks print too (perf/bench_util.h)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest rank; 0 of nothing."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class JsonSink:
    """Prints JSON lines, and appends them to a file when one is named."""

    def __init__(self, path: str) -> None:
        self._path = path

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        limit: float,
        limit_name: str,
        better: str,
        samples: int,
        repeats: Sequence[float] = (),
    ) -> None:
        middle = statistics.median(repeats) if repeats else value
        spread = (max(repeats) - min(repeats)) / middle if repeats and middle else 0.0
        line = json.dumps(
            {
                "name": name,
                "value": round(value, 6),
                "unit": unit,
                "limit": round(limit, 6),
                "limit_name": limit_name,
                "ratio": round(value / limit, 4) if limit else 0.0,
                "better": better,
                "n": samples,
                "p50": round(middle, 6),
                "spread": round(spread, 3),
            }
        )
        print(line, flush=True)
        if self._path:
            with open(self._path, "a") as file:
                file.write(line + "\n")
