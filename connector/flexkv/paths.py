"""Where the daemon's programs and sockets are, by the rules of the daemon itself (flexkv/server/socket_dir.h)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

SOCKET_NAME = "daemon.sock"


def default_socket_dir() -> Path:
    """$FLEXKV_SOCKET_DIR, else $XDG_RUNTIME_DIR/flexkv, else /tmp/flexkv-<uid>."""
    named = os.environ.get("FLEXKV_SOCKET_DIR")
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "flexkv"
    return Path(f"/tmp/flexkv-{os.getuid()}")


def default_cache_dir() -> Path:
    """$XDG_CACHE_HOME/flexkv, else ~/.cache/flexkv: what was measured once and need not be again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flexkv"


def program(name: str) -> str | None:
    """The program that came with this package, else the one on PATH."""
    packaged = Path(__file__).parent / "bin" / name
    if os.access(packaged, os.X_OK):
        return str(packaged)
    return shutil.which(name)


def _run(name: str) -> None:
    path = program(name)
    if path is None:
        sys.exit(f"{name}: this installation of flexkv holds no such program")
    os.execv(path, [name, *sys.argv[1:]])


def run_daemon() -> None:
    """Entry point `flexkvd`."""
    _run("flexkvd")


def run_cli() -> None:
    """Entry point `flexkv`."""
    _run("flexkv")
