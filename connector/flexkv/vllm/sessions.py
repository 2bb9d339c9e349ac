"""What both modes do with the C++ sessions: open them with all that identifies an engine, and settle failed loads."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from flexkv import _core
from flexkv.paths import default_cache_dir
from flexkv.vllm import autostart, identity, layout
from flexkv.vllm.layerwise import FlexKVWorkerMetadata
from flexkv.vllm.settings import Settings

if TYPE_CHECKING:
    import torch

logger = init_logger("vllm.flexkv")

COPY_CURVES_NAME = "copy-curves.json"


def arm_faults_once() -> None:
    """Test faults, armed by the environment of the engine's process."""
    spec = os.environ.get("FLEXKV_FAULTS")
    if spec and not getattr(arm_faults_once, "done", False):
        _core.arm_faults(spec)
        logger.warning("faults are armed: %s", spec)
    arm_faults_once.done = True  # type: ignore[attr-defined]


def _start_daemon(settings: Settings) -> None:
    try:
        if autostart.ensure_daemon(settings.socket_dir, settings.config_path):
            logger.info("starting flexkvd in %s", settings.socket_dir)
    except OSError as error:
        logger.warning("no FlexKV daemon: %s", error)


def _label(vllm_config: Any) -> str:
    """What `flexkv status` shows."""
    return f"vllm {os.path.basename(str(vllm_config.model_config.model).rstrip('/'))} pid {os.getpid()}"


def open_scheduler(
    vllm_config: Any, kv_cache_config: Any, settings: Settings, *, block_tables_change: bool, reduced: bool = False
) -> _core.SchedulerSession:
    """The session of an engine's scheduler, full or reduced; starts a daemon when none runs and settings allow it."""
    text, notes = identity.fingerprint(vllm_config, kv_cache_config)
    for note in notes:
        logger.warning("FlexKV: blocks of this engine are not shared with others: %s", note)
    if settings.autostart:
        _start_daemon(settings)
    return _core.SchedulerSession(
        socket_path=settings.socket_path,
        engine_id=identity.engine_id(vllm_config),
        world_size=vllm_config.parallel_config.world_size,
        tokens_per_block=identity.block_tokens(vllm_config, kv_cache_config),
        label=_label(vllm_config),
        fingerprint=text,
        lookup_wait_us=settings.lookup_wait_us,
        lookup_timeout_ms=settings.lookup_timeout_ms,
        load_timeout_ms=settings.load_timeout_ms,
        min_load_tokens=settings.min_load_tokens,
        block_tables_change=block_tables_change,
        reduced=reduced,
        layerwise_loads=settings.layerwise_loads and not reduced,
    )


def open_worker(
    session: _core.WorkerSession,
    vllm_config: Any,
    kv_cache_config: Any,
    kv_caches: dict[str, torch.Tensor],
    settings: Settings,
    *,
    reduced: bool = False,
) -> None:
    """Opens a rank's session over its KV tensors. UnknownLayoutError or ValueError with one sentence."""
    parallel = vllm_config.parallel_config
    found = layout.read_layout(kv_caches, vllm_config, kv_cache_config)
    session.open(
        socket_path=settings.socket_path,
        engine_id=identity.engine_id(vllm_config),
        rank=parallel.rank % parallel.world_size,
        world_size=parallel.world_size,
        load_timeout_ms=settings.load_timeout_ms,
        tokens_per_block=identity.block_tokens(vllm_config, kv_cache_config),
        tensors=found.tensors,
        descriptor=found.descriptor,
        reduced=reduced,
        replicated=identity.ranks_are_replicas(vllm_config, kv_cache_config),
        device=found.device,
        copy_curve_path=str(default_cache_dir() / COPY_CURVES_NAME),
        layerwise_wait_ms=settings.layerwise_wait_ms,
    )


def recomputes_itself(settings: Settings) -> bool:
    """Whether failed asynchronous loads are recomputed by us (layerwise.py), not by vLLM's policy."""
    return settings.layerwise_loads and not settings.allow_fail_policy


def set_failure_policy(transfer: Any, settings: Settings) -> None:
    """A load that fails is a miss: the engine computes those tokens instead of failing the request. All but a
    layer-wise one, which the engine is computing with (layerwise.py)."""
    if settings.layerwise_loads:
        if transfer.kv_load_failure_policy != "fail":
            logger.info('FlexKV sets kv_load_failure_policy to "fail", for layer-wise loads only')
        transfer.kv_load_failure_policy = "fail"
        return
    if transfer.kv_load_failure_policy != "fail" or settings.allow_fail_policy:
        return
    logger.info('FlexKV sets kv_load_failure_policy to "recompute" (flexkv.allow_fail_policy keeps "fail")')
    transfer.kv_load_failure_policy = "recompute"


class LoadEnds:
    """The scheduler's side: which asynchronous loads ended, and which of them failed."""

    def __init__(self) -> None:
        self._failed: set[str] = set()

    def take(self, session: _core.SchedulerSession, output: Any, failed: Collection[str] = ()) -> None:
        if output.invalid_block_ids:  # ranks report failures in passes of their own, at the latest with the end
            self._failed.update(session.loads_into(list(output.invalid_block_ids)))
        self._failed.update(failed)
        for request_id in output.finished_recving or ():
            session.load_ended(request_id, request_id in self._failed)
            self._failed.discard(request_id)


class LoadReports:
    """A worker's side: loads that ended, and GPU blocks that did not arrive."""

    def __init__(self, *, recomputes_itself: bool = False) -> None:
        self._recomputes_itself = recomputes_itself
        self._failed_blocks: set[int] = set()
        self._metadata: FlexKVWorkerMetadata | None = None

    def poll(self, session: _core.WorkerSession) -> set[str] | None:
        loads, failed_blocks, layer_ends, layer_failed_blocks = session.poll()
        self._failed_blocks.update(layer_failed_blocks)
        if not self._recomputes_itself:
            self._failed_blocks.update(failed_blocks)
        if layer_ends or (failed_blocks and self._recomputes_itself):
            told = FlexKVWorkerMetadata(layer_ends, set(failed_blocks) if self._recomputes_itself else set())
            self._metadata = told if self._metadata is None else self._metadata.aggregate(told)
        return set(loads) or None

    def take_metadata(self) -> FlexKVWorkerMetadata | None:
        metadata, self._metadata = self._metadata, None
        return metadata

    def take_failed_blocks(self) -> set[int]:
        failed, self._failed_blocks = self._failed_blocks, set()
        return failed
