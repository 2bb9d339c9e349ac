"""What a request says about its own future, in `kv_transfer_params`:

    {"flexkv.hint": {"continue_p": 0.9, "expected_in_s": 12}}

`continue_p`: probability (0 to 1) that a later request continues this one's prompt. `expected_in_s`: in how many
seconds, at least 0. Either may be left out or null. Eviction policies may use them; a wrong hint costs hits only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vllm.logger import init_logger

logger = init_logger("vllm.flexkv")

HINT_KEY = "flexkv.hint"
UNKNOWN = -1.0
NO_HINT = (UNKNOWN, UNKNOWN)


def _number(hint: Mapping[str, Any], name: str, most: float) -> float:
    value = hint.get(name)
    if value is None:
        return UNKNOWN
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is a number, not {type(value).__name__}")
    if not math.isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"{name} lies between 0 and {most:g}")
    return float(value)


def parse_hint(hint: Any) -> tuple[float, float]:
    """(continue_p, expected_in_s). Raises ValueError with what is wrong; never shows values of other keys."""
    if not isinstance(hint, Mapping):
        raise ValueError(f"it is an object, not {type(hint).__name__}")
    if hint.keys() - {"continue_p", "expected_in_s"}:
        raise ValueError("it has continue_p and expected_in_s only")
    return _number(hint, "continue_p", 1.0), _number(hint, "expected_in_s", 1e9)


class HintReader:
    """Hints of requests; bad ones are ignored and counted, and the first is said in the log."""

    def __init__(self) -> None:
        self.bad = 0

    def read(self, request: Any) -> tuple[float, float]:
        try:
            params = getattr(request, "kv_transfer_params", None)
            if not isinstance(params, Mapping) or HINT_KEY not in params:
                return NO_HINT
            return parse_hint(params[HINT_KEY])
        except Exception as error:  # a user's object may raise anything
            self.bad += 1
            if self.bad == 1:
                logger.warning("%s in kv_transfer_params is ignored, as later bad ones will be: %s", HINT_KEY, error)
            return NO_HINT
