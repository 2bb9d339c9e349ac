"""A real vLLM over the SSD tier: a CPU tier too small for the work, kill -9 of daemon and engine, bytes flipped.

Whatever happens, greedy tokens equal those of a plain engine; and what was written is used again.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from engine import RealEngine, random_prompt, transfer_config
from scenario import run_scenario
from tiny_model import SMALL, make_model

BLOCK = 32
TOKENS = 10
PROMPTS = [random_prompt(random.Random(500 + i), 600) for i in range(12)]
FULL_BLOCKS = 12 * (600 // BLOCK)  # of 32 KiB: three times the CPU tier
ARGUMENTS: dict[str, Any] = {"block_size": BLOCK, "max_model_len": 1024, "num_gpu_blocks_override": 100}


@pytest.fixture(scope="module")
def model(models_dir: Path) -> Path:
    return make_model(models_dir / "small", SMALL)


@pytest.fixture(scope="module")
def plain(model: Path) -> list[list[int]]:
    arguments = {**ARGUMENTS, "num_gpu_blocks_override": 400, "enable_prefix_caching": False}
    tokens: list[list[int]] = run_scenario(model, None, [["generate", PROMPTS, TOKENS]], **arguments)[0]
    return tokens


@pytest.fixture
def ssd() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="flexkv-ssd-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def ssd_daemon(directory: Path, **config: Any) -> Daemon:
    return Daemon(
        cpu_cache_bytes="2MiB", enable_ssd=True, ssd_cache_dir=str(directory), ssd_cache_bytes="256MiB", **config
    )


def written(daemon: Daemon) -> int:
    """Blocks on the devices, once nothing waits to be written any more."""
    deadline = time.monotonic() + 20
    while True:
        status = daemon.status()["ssd"]
        if status["writes_waiting"] + status["writes_in_flight"] == 0:
            return int(status["blocks"])
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def one_by_one() -> list[list[Any]]:
    """Each prompt alone, with time for its blocks to be written before they must leave memory."""
    actions: list[list[Any]] = [["ready"]]
    for prompt in PROMPTS:
        actions += [["generate", [prompt], TOKENS], ["sleep", 0.3]]
    return actions


def tokens_of(results: list[Any]) -> list[list[int]]:
    return [result[0] for result in results if isinstance(result, list)]


def test_equal_tokens_after_kill_of_daemon_and_engine(ssd: Path, model: Path, plain: list[list[int]]) -> None:
    with ssd_daemon(ssd) as daemon:
        transfer = transfer_config(daemon.socket_path, min_load_tokens=0)
        first = run_scenario(model, transfer, one_by_one(), **ARGUMENTS)
        assert tokens_of(first) == plain
        assert written(daemon) >= 0.9 * FULL_BLOCKS, "the work must not fit memory, and all of it must be on the SSD"
        daemon.kill()
        daemon.start()
        assert daemon.status()["ssd"]["recovered_blocks"] >= 0.9 * FULL_BLOCKS
        actions = [["ready"], ["generate", PROMPTS, TOKENS], ["stats"]]
        second = run_scenario(model, transfer, actions, **ARGUMENTS)
        assert second[1] == plain
        assert second[2]["loaded_tokens"] >= 0.8 * FULL_BLOCKS * BLOCK
        assert second[2]["load_failures"] == 0
        counters = daemon.status()["counters"]
        assert counters["ssd_load_blocks"] >= 0.8 * FULL_BLOCKS
        assert counters["ssd_read_failed_blocks"] == 0


def test_engine_goes_on_over_kills_of_the_daemon(ssd: Path, model: Path, plain: list[list[int]]) -> None:
    with ssd_daemon(ssd) as daemon:
        engine = RealEngine(model, transfer_config(daemon.socket_path, min_load_tokens=0), **ARGUMENTS)
        try:
            for life in range(4):
                engine.wait_ready()
                before = engine.stats()["loaded_tokens"]
                assert engine.generate(PROMPTS, TOKENS) == plain
                loaded = engine.stats()["loaded_tokens"] - before
                if life > 0:
                    assert loaded > 0, "blocks of the life before are used"
                if life % 2 == 0:
                    written(daemon)  # else it dies while it writes
                engine.drop_local_cache()
                daemon.kill()
                daemon.start()
        finally:
            engine.close()


def test_flipped_bytes_are_misses(ssd: Path, model: Path, plain: list[list[int]]) -> None:
    with ssd_daemon(ssd, ssd_backend="threads") as daemon:  # the other tests: io_uring
        transfer = transfer_config(daemon.socket_path, min_load_tokens=0)
        assert tokens_of(run_scenario(model, transfer, one_by_one(), **ARGUMENTS)) == plain
        assert written(daemon) > 0
        daemon.kill()
        rng = random.Random(1)
        flipped = 0
        for data in ssd.glob("segment-*.data"):
            with data.open("r+b") as file:
                for offset in range(0, data.stat().st_size, 64 << 10):  # a byte in about every second block
                    position = offset + rng.randrange(32 << 10)
                    file.seek(position)
                    byte = file.read(1)
                    if byte:
                        file.seek(position)
                        file.write(bytes([byte[0] ^ 0x40]))
                        flipped += 1
        assert flipped > 0
        daemon.start()
        actions = [["ready"], ["generate", PROMPTS, TOKENS], ["stats"]]
        results = run_scenario(model, transfer, actions, **ARGUMENTS)
        assert results[1] == plain
        assert daemon.status()["counters"]["ssd_read_failed_blocks"] > 0


def test_reset_holds_over_a_kill(ssd: Path, model: Path, plain: list[list[int]]) -> None:
    with ssd_daemon(ssd) as daemon:
        transfer = transfer_config(daemon.socket_path, min_load_tokens=0)
        engine = RealEngine(model, transfer, **ARGUMENTS)
        try:
            engine.wait_ready()
            assert engine.generate(PROMPTS[:3], TOKENS) == plain[:3]
            assert written(daemon) > 0
            assert engine.connector.reset_cache()
            engine.drop_local_cache()
            daemon.kill()
            daemon.start()
            engine.wait_ready()
            assert daemon.status()["ssd"]["blocks"] == 0
            before = engine.stats()["loaded_tokens"]
            assert engine.generate(PROMPTS[:3], TOKENS) == plain[:3]
            assert engine.stats()["loaded_tokens"] == before
        finally:
            engine.close()
