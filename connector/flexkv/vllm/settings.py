"""What a user may set in kv_connector_extra_config, checked once."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flexkv.paths import SOCKET_NAME, default_socket_dir

PREFIX = "flexkv."


@dataclass(frozen=True)
class Settings:
    """Field `x` is the key `flexkv.x`."""

    socket: str = ""
    """The daemon's socket directory (or its daemon.sock); "" = the default directory."""
    config: str = ""
    """Configuration file for a daemon that is started here; "" = $FLEXKV_CONFIG_PATH, else defaults."""
    autostart: bool = True
    """Start a daemon when none is running."""
    lookup_wait_us: int = 100
    """Longest one question for cached tokens waits before the request is asked about again next step."""
    lookup_timeout_ms: int = 20
    """A lookup older than this counts as nothing cached."""
    load_timeout_ms: int = 10_000
    """A load that takes longer has failed; its tokens are computed."""
    min_load_tokens: int = -1
    """Shorter hits are not loaded; -1 = from measured step time and copy rate."""
    allow_fail_policy: bool = False
    """Leave kv_load_failure_policy "fail" as it is."""
    kv_layout: str = "auto"
    """How the KV cache of a GPU lies: "auto" = all layers of a block side by side where that is safe, "engine" =
    as the engine likes it. VLLM_KV_CACHE_LAYOUT comes before both."""
    layerwise_loads: bool = False
    """Compute with a hit's first layers while its last ones arrive (README: Layer-wise loads)."""
    layerwise_wait_ms: int = 20
    """Longest a step waits for the daemon to begin with its layer-wise loads; then they have failed."""

    @property
    def socket_dir(self) -> Path:
        if not self.socket:
            return default_socket_dir()
        path = Path(self.socket)
        return path.parent if path.name == SOCKET_NAME else path

    @property
    def socket_path(self) -> str:
        return str(self.socket_dir / SOCKET_NAME)

    @property
    def config_path(self) -> str:
        return self.config or os.environ.get("FLEXKV_CONFIG_PATH", "")


_LOWEST = {
    "lookup_wait_us": 0,
    "lookup_timeout_ms": 1,
    "load_timeout_ms": 1,
    "min_load_tokens": -1,
    "layerwise_wait_ms": 1,
}
_CHOICES = {"kv_layout": ("auto", "engine")}
_HIGHEST = 2**31 - 1


def _convert(name: str, kind: str, value: Any) -> Any:
    """The value in the field's type. Raises ValueError with one sentence."""
    if kind == "bool":
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError(f"{PREFIX}{name} is true or false, not {value!r}")
    if kind == "int":
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(f"{PREFIX}{name} is a whole number, not {value!r}")
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"{PREFIX}{name} is a whole number, not {value!r}") from None
        if not _LOWEST[name] <= number <= _HIGHEST:
            raise ValueError(f"{PREFIX}{name} lies between {_LOWEST[name]} and {_HIGHEST}, not {number}")
        return number
    if name in _CHOICES:
        if value in _CHOICES[name]:
            return value
        raise ValueError(f"{PREFIX}{name} is one of {', '.join(_CHOICES[name])}, not {value!r}")
    if not isinstance(value, str):
        raise ValueError(f"{PREFIX}{name} is a path, not {value!r}")
    return value


def read_settings(extra: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Settings and one warning per key that could not be used (its default holds then). Keys of others are ignored."""
    kinds = {field.name: str(field.type) for field in fields(Settings)}
    values: dict[str, Any] = {}
    warnings: list[str] = []
    for key, value in extra.items():
        if not key.startswith(PREFIX):
            continue
        name = key[len(PREFIX) :]
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            warnings.append(f"unknown key {key} in kv_connector_extra_config{hint}")
            continue
        try:
            values[name] = _convert(name, kinds[name], value)
        except ValueError as error:
            warnings.append(f"{error}; the default is used")
    return Settings(**values), warnings
