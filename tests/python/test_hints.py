"""Hints of requests: what is taken, and that what is not costs a counter only."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from flexkv.vllm.hints import HINT_KEY, NO_HINT, HintReader, parse_hint


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        ({}, (-1.0, -1.0)),
        ({"continue_p": 0}, (0.0, -1.0)),
        ({"continue_p": 0.9, "expected_in_s": 12}, (0.9, 12.0)),
        ({"continue_p": 1, "expected_in_s": None}, (1.0, -1.0)),
        ({"expected_in_s": 0.0}, (-1.0, 0.0)),
    ],
)
def test_good_hints(hint: dict[str, Any], expected: tuple[float, float]) -> None:
    assert parse_hint(hint) == expected


BAD = [
    None,
    "0.9",
    0.9,
    [0.9, 12],
    {"continue_p": 1.5},
    {"continue_p": -0.1},
    {"continue_p": "0.9"},
    {"continue_p": True},
    {"continue_p": math.nan},
    {"continue_p": 10**400},
    {"continue_p": 0.5, "expected_in_s": math.inf},
    {"continue_p": 0.5, "expected_in_s": -3},
    {"continue_p": 0.5, "expected": 3},
    {1: 2},
]


@pytest.mark.parametrize("hint", BAD)
def test_bad_hints_are_counted_and_ignored(hint: Any) -> None:
    reader = HintReader()
    request = SimpleNamespace(kv_transfer_params={HINT_KEY: hint})
    assert reader.read(request) == NO_HINT
    assert reader.bad == 1


class Hostile:
    @property
    def kv_transfer_params(self) -> Any:
        raise RuntimeError("no")


def test_one_warning_whatever_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[Any] = []
    monkeypatch.setattr("flexkv.vllm.hints.logger.warning", lambda *args: warnings.append(args))
    reader = HintReader()
    for hint in BAD:
        reader.read(SimpleNamespace(kv_transfer_params={HINT_KEY: hint}))
    reader.read(Hostile())
    assert reader.bad == len(BAD) + 1
    assert len(warnings) == 1


def test_requests_without_hints() -> None:
    reader = HintReader()
    for params in (None, {}, {"do_remote_prefill": True}, 7):
        assert reader.read(SimpleNamespace(kv_transfer_params=params)) == NO_HINT
    assert reader.read(SimpleNamespace()) == NO_HINT
    assert reader.bad == 0
