from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flexkv.vllm.settings import Settings, read_settings


def test_defaults() -> None:
    settings, warnings = read_settings({})
    assert settings == Settings()
    assert warnings == []


def test_keys_of_others_are_left_alone() -> None:
    assert read_settings({"lmcache.something": 1, "plain": 2}) == (Settings(), [])


def test_all_keys() -> None:
    settings, warnings = read_settings(
        {
            "flexkv.socket": "/run/flexkv/daemon.sock",
            "flexkv.config": "/etc/flexkv.json",
            "flexkv.autostart": "false",
            "flexkv.lookup_wait_us": "50",
            "flexkv.lookup_timeout_ms": 5,
            "flexkv.load_timeout_ms": 100,
            "flexkv.min_load_tokens": 64,
            "flexkv.allow_fail_policy": True,
            "flexkv.kv_layout": "engine",
            "flexkv.layerwise_loads": "true",
            "flexkv.layerwise_wait_ms": 7,
        }
    )
    assert warnings == []
    assert settings == Settings(
        "/run/flexkv/daemon.sock", "/etc/flexkv.json", False, 50, 5, 100, 64, True, "engine", True, 7
    )
    assert settings.socket_dir == Path("/run/flexkv")
    assert settings.socket_path == "/run/flexkv/daemon.sock"


def test_an_unknown_key_gets_the_nearest_name() -> None:
    settings, warnings = read_settings({"flexkv.lookup_wait": 5})
    assert settings == Settings()
    assert len(warnings) == 1
    assert "did you mean flexkv.lookup_wait_us?" in warnings[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("autostart", "maybe"),
        ("autostart", 1),
        ("lookup_wait_us", "soon"),
        ("lookup_wait_us", True),
        ("lookup_timeout_ms", 0),
        ("load_timeout_ms", -5),
        ("min_load_tokens", -2),
        ("socket", 7),
        ("kv_layout", "BLHNC"),
        ("layerwise_wait_ms", 0),
    ],
)
def test_a_bad_value_leaves_the_default(key: str, value: Any) -> None:
    settings, warnings = read_settings({f"flexkv.{key}": value})
    assert settings == Settings()
    assert len(warnings) == 1
    assert warnings[0].startswith(f"flexkv.{key}")


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXKV_SOCKET_DIR", "/a")
    assert Settings().socket_path == "/a/daemon.sock"
    monkeypatch.delenv("FLEXKV_SOCKET_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert Settings().socket_path == "/run/user/1/flexkv/daemon.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert Settings().socket_path.startswith("/tmp/flexkv-")
    assert Settings(socket="/b").socket_path == "/b/daemon.sock"


def test_the_environment_names_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXKV_CONFIG_PATH", "/c.json")
    assert Settings().config_path == "/c.json"
    assert Settings(config="/d.json").config_path == "/d.json"
