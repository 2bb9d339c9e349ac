from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flexkv.paths import SOCKET_NAME, program
from flexkv.vllm import autostart


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    sockets = tmp_path / "s"
    yield sockets
    flexkv = program("flexkv")
    if flexkv is not None and autostart.is_listening(str(sockets / SOCKET_NAME)):
        subprocess.run([flexkv, "--socket-dir", str(sockets), "stop"], check=True, timeout=20)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text('{"cpu_cache_bytes": "64MiB", "segment_bytes": "64MiB"}')
    return str(path)


def daemon_pid(directory: Path) -> int:
    return int((directory / "daemon.lock").read_text())


def test_it_starts_one_daemon_for_many_engines(directory: Path, config: str) -> None:
    started: list[bool] = []
    threads = [
        threading.Thread(target=lambda: started.append(autostart.ensure_daemon(directory, config))) for _ in range(5)
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - start < 2.5
    assert started.count(True) == 1
    deadline = time.monotonic() + 10
    while not autostart.is_listening(str(directory / SOCKET_NAME)):
        assert time.monotonic() < deadline, (directory / autostart.LOG_NAME).read_text()
        time.sleep(0.02)
    assert not autostart.ensure_daemon(directory, config)
    assert directory.stat().st_mode & 0o777 == 0o700


def test_the_daemon_is_free_of_what_binds_the_engine(
    directory: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert autostart.ensure_daemon(directory, config)
        assert os.sched_getaffinity(0) == {min(allowed)}
    finally:
        os.sched_setaffinity(0, allowed)
    pid = daemon_pid(directory)
    assert os.sched_getaffinity(pid) >= allowed
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == pid


def test_the_environment_of_the_daemon() -> None:
    given = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "GOMP_CPU_AFFINITY": "0", "LD_PRELOAD": "x.so", "HOME": "/root"}
    assert autostart.daemon_environment(given) == {"PATH": "/bin", "HOME": "/root"}


def test_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(PermissionError):
        autostart.ensure_daemon(open_to_all)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        autostart.ensure_daemon(link)


def test_a_listener_is_left_alone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(tmp_path / SOCKET_NAME))
        server.listen()
        assert not autostart.ensure_daemon(tmp_path)


def test_without_the_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autostart, "program", lambda name: None)
    with pytest.raises(FileNotFoundError, match="flexkvd"):
        autostart.ensure_daemon(directory)


def test_the_size_of_the_tier_is_told_and_compared(
    directory: Path, config: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert autostart.ensure_daemon(directory, config)
    deadline = time.monotonic() + 10
    while not autostart.is_listening(str(directory / SOCKET_NAME)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert autostart.read_capacity(directory) == 64 << 20
    monkeypatch.setattr(autostart.logger, "propagate", True)
    with caplog.at_level("INFO", logger="vllm.flexkv"):
        caplog.clear()
        autostart.logger.addHandler(caplog.handler)
        autostart._compare_sizes(directory, 1 << 20)
        assert not any(record.levelname == "WARNING" for record in caplog.records)
        autostart._compare_sizes(directory, 1 << 40)
        assert any("smaller than the engine's own KV cache" in record.message for record in caplog.records)
        autostart.logger.removeHandler(caplog.handler)
