"""Starts a daemon for this user when none is running. Scheduler side only, and bounded: about a second.

The daemon outlives the engine and serves others, so it gets nothing of the engine's: a session and process group of its
own, all CPUs and memory nodes instead of the engine's binding, no thread settings, no preloaded libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from flexkv.paths import SOCKET_NAME, program

LOG_NAME = "flexkvd.log"
LOCK_NAME = "autostart.lock"
LOCK_WAIT_S = 1.0
READY_WAIT_S = 30.0
_THREAD_VARIABLES = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD", "VLLM_")
_SET_MEMPOLICY, _GET_MEMPOLICY = 238, 239  # x86-64
_NODE_WORDS = 16  # 1024 memory nodes

logger = logging.getLogger("vllm.flexkv")


def is_listening(socket_path: str) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(0.2)
            client.connect(socket_path)
            return True
    except OSError:
        return False


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment without what only concerns the engine."""
    return {name: value for name, value in environment.items() if not name.startswith(_THREAD_VARIABLES)}


@contextlib.contextmanager
def _unbound_thread() -> Iterator[None]:
    """Takes CPU and memory binding off the calling thread, whose children inherit them, and puts them back."""
    libc = ctypes.CDLL(None, use_errno=True)
    cpus = os.sched_getaffinity(0)
    mode = ctypes.c_int(0)
    nodes = (ctypes.c_ulong * _NODE_WORDS)()
    bits = ctypes.c_ulong(_NODE_WORDS * 64)
    has_policy = libc.syscall(_GET_MEMPOLICY, ctypes.byref(mode), nodes, bits, None, 0) == 0 and mode.value != 0
    try:
        with contextlib.suppress(OSError):  # the kernel cuts this down to the CPUs of the control group
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        if has_policy:
            libc.syscall(_SET_MEMPOLICY, 0, None, ctypes.c_ulong(0))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)
        if has_policy:
            libc.syscall(_SET_MEMPOLICY, mode, nodes, bits)


@contextlib.contextmanager
def _lock(path: Path, wait_s: float) -> Iterator[bool]:
    """Holds a file lock; False when another process held it all the time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.02)
        yield True
    finally:
        os.close(descriptor)


def _own_directory(directory: Path) -> None:
    """Makes the socket directory, or checks that it is ours alone. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise PermissionError(f"{directory} is not a directory of this user alone")


def start_daemon(socket_dir: Path, config: str) -> subprocess.Popen[bytes]:
    """Starts flexkvd. Raises OSError."""
    path = program("flexkvd")
    if path is None:
        raise FileNotFoundError("flexkvd is neither in the flexkv package nor on PATH")
    command = [path, "--socket-dir", str(socket_dir)]
    if config:
        command += ["--config", config]
    log = os.open(socket_dir / LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        with _unbound_thread():
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=daemon_environment(os.environ),
                cwd="/",
                start_new_session=True,
                close_fds=True,
            )
    finally:
        os.close(log)


def _watch(process: subprocess.Popen[bytes], socket_dir: Path) -> None:
    """Says how the start went; also reaps the daemon should it end before the engine does."""
    deadline = time.monotonic() + READY_WAIT_S
    socket_path = str(socket_dir / SOCKET_NAME)
    while process.poll() is None and time.monotonic() < deadline:
        if is_listening(socket_path):
            logger.info("flexkvd is up (pid %d, log %s); `flexkv stop` ends it", process.pid, socket_dir / LOG_NAME)
            break
        time.sleep(0.05)
    else:
        code = process.poll()
        what = "is not listening yet" if code is None else f"ended with code {code}"
        logger.warning("flexkvd %s; the engine runs without its cache. See %s", what, socket_dir / LOG_NAME)
    process.wait()


def read_capacity(socket_dir: Path) -> int:
    """Bytes of the daemon's CPU tier. Raises OSError, ValueError or subprocess.SubprocessError."""
    path = program("flexkv")
    if path is None:
        raise FileNotFoundError("flexkv is neither in the flexkv package nor on PATH")
    command = [path, "--socket-dir", str(socket_dir), "status", "--json"]
    answer = subprocess.run(
        command,
        capture_output=True,
        check=True,
        timeout=10,
        env=daemon_environment(os.environ),
        stdin=subprocess.DEVNULL,
    )
    return int(json.loads(answer.stdout)["memory"]["budget_bytes"])


def _compare_sizes(socket_dir: Path, engine_bytes: int) -> None:
    deadline = time.monotonic() + READY_WAIT_S
    while not is_listening(str(socket_dir / SOCKET_NAME)):
        if time.monotonic() >= deadline:
            return
        time.sleep(0.2)
    try:
        capacity = read_capacity(socket_dir)
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        logger.debug("the size of the CPU tier is not known: %s", error)
        return
    gib = 1 << 30
    logger.info(
        "FlexKV's CPU tier has %.1f GiB, the engine's own KV cache %.1f GiB", capacity / gib, engine_bytes / gib
    )
    if capacity < engine_bytes:
        logger.warning(
            "FlexKV's CPU tier is smaller than the engine's own KV cache, which mostly holds the same blocks: "
            "raise cpu_cache_bytes"
        )


def compare_sizes(socket_dir: Path, engine_bytes: int) -> None:
    """Says in the background how large the CPU tier is, and warns when it is smaller than the engine's own KV cache."""
    threading.Thread(target=_compare_sizes, args=(socket_dir, engine_bytes), name="flexkv-sizes", daemon=True).start()


def ensure_daemon(socket_dir: Path, config: str = "") -> bool:
    """Starts a daemon unless one listens. True when it was started here. Raises OSError with a reason."""
    socket_path = str(socket_dir / SOCKET_NAME)
    if is_listening(socket_path):
        return False
    _own_directory(socket_dir)
    with _lock(socket_dir / LOCK_NAME, LOCK_WAIT_S) as held:
        if not held or is_listening(socket_path):
            return False  # another engine is starting it
        process = start_daemon(socket_dir, config)
        thread = threading.Thread(target=_watch, args=(process, socket_dir), name="flexkv-autostart", daemon=True)
        thread.start()
        # The lock is held until the daemon listens, so that a second engine does not start a second one; bounded.
        deadline = time.monotonic() + LOCK_WAIT_S / 2
        while not is_listening(socket_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    return True
