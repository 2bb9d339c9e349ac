"""FlexKVConnector: translates vLLM's hooks into calls of two C++ sessions. No policy lives here.

Nothing raised in here reaches the engine. After an exception the side it happened on stops for good: the scheduler's
side answers "nothing cached" and tells the workers to drop what they hold; a worker reports all loads as failed. So a
swallowed exception costs hits, never a waiting request and never a wrong byte.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from flexkv import _core
from flexkv.vllm import autostart, compat, identity, layout
from flexkv.vllm.hints import HintReader
from flexkv.vllm.layerwise import FlexKVWorkerMetadata, LayerWatch, RecomputedLoads
from flexkv.vllm.sessions import (
    LoadEnds,
    LoadReports,
    arm_faults_once,
    open_scheduler,
    open_worker,
    recomputes_itself,
    set_failure_policy,
)
from flexkv.vllm.settings import Settings, read_settings
from flexkv.vllm.sleep_mode import watch_sleep
from flexkv.vllm.stats import SCHEDULER_COUNTERS, WORKER_COUNTERS, FlexKVPromMetrics, FlexKVStats, Increments

if TYPE_CHECKING:
    import torch

logger = init_logger("vllm.flexkv")

RESET_TIMEOUT_MS = 2000
FailedLoad = tuple[str, list[int], bool]  # request, GPU blocks, whether layer-wise
LEGACY_STREAM = 1  # how CUDA names its default stream explicitly; 0 says "no stream" to the agent


@dataclass
class FlexKVMetadata(compat.KVConnectorMetadata):  # type: ignore[misc]
    """What the scheduler's side tells every worker at each step."""

    plan: bytes = b""
    failed_loads: tuple[FailedLoad, ...] = ()  # promised to the engine, but no plan will name them
    stop: bool = False  # the scheduler's side broke: copy nothing more


class SchedulerSide:
    """The connector in the scheduler's process."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._session: _core.SchedulerSession | None = None
        self._broken_loads: list[FailedLoad] = []
        self._ends = LoadEnds()
        self._stop = False
        self._recomputed: RecomputedLoads | None = None
        self._layerwise_offer = ""  # the request whose latest offer is a layer-wise one
        self._hash_checked = False
        self._hash_algorithm = vllm_config.cache_config.prefix_caching_hash_algo
        self.errors = 0
        self._hints = HintReader()
        self._increments = Increments(SCHEDULER_COUNTERS)
        try:
            spec = layout.check_groups(vllm_config, kv_cache_config)
        except layout.UnknownLayoutError as error:
            logger.warning("FlexKV is off for this engine: %s", error)
            return
        if settings.layerwise_loads:
            self._recomputed = RecomputedLoads(spec.block_size)
        moves = layout.block_tables_change(spec)
        self._session = open_scheduler(vllm_config, kv_cache_config, settings, block_tables_change=moves)
        autostart.compare_sizes(settings.socket_dir, identity.engine_cache_bytes(vllm_config, kv_cache_config))

    @property
    def session(self) -> _core.SchedulerSession | None:
        return self._session

    def fail(self, hook: str, error: Exception) -> None:
        """Counts, logs once, turns this side off: what the session knows of blocks may be incomplete from here on."""
        self.errors += 1
        session, self._session = self._session, None
        if session is None:
            return
        logger.error("FlexKV is off for this engine after an error in %s", hook, exc_info=error)
        self._stop = True
        try:
            self._broken_loads += session.undelivered_loads()
        finally:
            session.close()

    def bind_kv_cache_manager(self, manager: Any) -> None:
        if self._recomputed is not None:
            self._recomputed.bind(manager)
        if self._session is not None:
            self._session.set_block_table(manager.get_block_ids)

    def on_new_request(self, request: Any) -> None:
        session = self._session
        if session is None:
            return
        if not self._hash_checked:
            self._check_none_hash()
        # An adapter's content is not part of the identity (identity.py).
        session.new_request(request, request.lora_request is None, *self._hints.read(request))

    def _check_none_hash(self) -> None:
        self._hash_checked = True
        expected = identity.expected_none_hash(self._hash_algorithm)
        if expected is not None and expected != compat.none_hash():
            raise RuntimeError("block hashes start from another value than the one in the fingerprint")

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        session = self._session
        if session is None or request.skip_reading_prefix_cache:
            return 0, False
        tokens, is_async = session.matched_tokens(request, num_computed_tokens)
        self._layerwise_offer = request.request_id if tokens and not is_async else ""
        return tokens, is_async

    def blocks_allocated(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens > 0 and self._recomputed is not None and self._layerwise_offer != request.request_id:
            self._recomputed.started(request)
        if self._session is not None:
            self._session.blocks_allocated(request, blocks, num_external_tokens)

    def promise_failed(self, request: Any, blocks: Any) -> None:
        """The engine waits for a load that was not launched: the workers report it as failed."""
        if any(load[0] == request.request_id for load in self._broken_loads):
            return
        try:
            block_ids = [int(block) for block in blocks.get_block_ids()[0]]
        except Exception:
            block_ids = []
        self._broken_loads.append((request.request_id, block_ids, self._layerwise_offer == request.request_id))

    def build_metadata(self, scheduler_output: Any) -> FlexKVMetadata:
        metadata = FlexKVMetadata()
        try:
            if self._session is not None:
                metadata.plan = self._session.step(scheduler_output)
        except Exception as error:
            self.fail("build_connector_meta", error)
        if self._broken_loads:
            metadata.failed_loads = tuple(self._broken_loads)
            self._broken_loads = []
        metadata.stop = self._stop
        return metadata

    def update_output(self, output: Any) -> None:
        failed = () if self._recomputed is None else self._recompute(self._recomputed, output)
        if self._session is not None:
            self._ends.take(self._session, output, failed)

    def _recompute(self, recomputed: RecomputedLoads, output: Any) -> list[str]:
        """Requests whose asynchronous load has failed. Works without a session, too: the engine waits for them."""
        told = output.kv_connector_worker_meta
        if isinstance(told, FlexKVWorkerMetadata):
            if told.failed_blocks:
                recomputed.note_failed(told.failed_blocks)
            if told.layer_ends and self._session is not None:
                for request_id, blocks in self._session.layer_loads_ended(told.layer_ends):
                    recomputed.evict(request_id, blocks)
        return [request_id for request_id in output.finished_recving or () if recomputed.ended(request_id)]

    def request_finished(self, request: Any) -> None:
        if self._session is not None:
            self._session.request_finished(request.request_id)

    def reset_cache(self) -> bool:
        return self._session is not None and self._session.reset_cache(RESET_TIMEOUT_MS)

    def totals(self) -> dict[str, Any]:
        totals = {} if self._session is None else self._session.stats()
        totals["swallowed_errors"] = self.errors
        totals["bad_hints"] = self._hints.bad
        return totals

    def take_stats(self) -> FlexKVStats | None:
        now = time.monotonic()
        return self._increments.take(self.totals(), now) if self._increments.due(now) else None

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class WorkerSide:
    """The connector in a worker's process."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, settings: Settings) -> None:
        self._vllm_config = vllm_config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        self.session = _core.WorkerSession()
        self._fenced: FlexKVMetadata | None = None
        self._device: torch.device | None = None  # of the KV tensors, when they lie on a GPU
        self._stream = 0
        self._watches_sleep = False
        self.reports = LoadReports(recomputes_itself=recomputes_itself(settings))
        self.layers: LayerWatch | None = None
        if settings.layerwise_loads:
            graphs = vllm_config.compilation_config.cudagraph_mode
            self.layers = LayerWatch(self.session, never_asks=graphs is not None and graphs.has_full_cudagraphs())
        self.errors = 0
        self._increments = Increments(WORKER_COUNTERS)

    def fail(self, hook: str, error: Exception) -> None:
        """Counts, logs once, ends the session; all loads it held are then reported as failed."""
        self.errors += 1
        if self.errors == 1:
            logger.error("FlexKV is off for this worker after an error in %s", hook, exc_info=error)
        self.session.abandon()

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Also when the engine has new tensors, after sleep: first the session over the old ones ends."""
        self.session.abandon()
        try:
            open_worker(self.session, self._vllm_config, self._kv_cache_config, kv_caches, self._settings)
        except (layout.UnknownLayoutError, ValueError) as error:
            logger.warning("FlexKV is off for this worker: %s", error)
            return
        device = next(iter(kv_caches.values())).device
        self._device = device if device.type == "cuda" else None
        if self._device is not None and not self._watches_sleep:
            self._watch_sleep(kv_caches)
        if self.layers is not None:
            self.layers.expect(self._kv_cache_config.kv_cache_groups[0].layer_names)

    def _watch_sleep(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """The tensors stay where they are in sleep mode; their memory comes and goes."""
        self._watches_sleep = True
        try:
            watch_sleep(self._vllm_config, self.session.abandon, lambda: self.register(kv_caches), self.fail)
        except (AttributeError, ImportError) as error:
            logger.warning("FlexKV is off for this worker: this vLLM's sleep mode is not understood (%s)", error)
            self.session.abandon()

    def _compute_stream(self) -> int:
        if self._device is None:
            return 0
        import torch

        return torch.cuda.current_stream(self._device).cuda_stream or LEGACY_STREAM

    def fence(self, metadata: Any) -> None:
        """Before the engine overwrites blocks. Called by handle_preemptions, and again when the metadata is bound."""
        if not isinstance(metadata, FlexKVMetadata) or metadata is self._fenced:
            return
        self._fenced = metadata
        if metadata.stop:
            self.session.abandon()
        elif metadata.plan:
            self._stream = self._compute_stream()
            self.session.fence(metadata.plan, self._stream)

    def bind(self, metadata: Any) -> None:
        if not isinstance(metadata, FlexKVMetadata):
            return
        self.fence(metadata)
        if metadata.plan:
            self.session.bind(metadata.plan, self._stream)
        if metadata.failed_loads:
            self.session.fail_loads(list(metadata.failed_loads))

    def step_done(self) -> None:
        self.session.step_done()
        if self.layers is not None:
            self.layers.step_done()

    def poll(self) -> set[str] | None:
        return self.reports.poll(self.session)

    def totals(self) -> dict[str, Any]:
        totals = self.session.stats()
        totals["swallowed_errors"] = self.errors
        return totals

    def take_stats(self) -> FlexKVStats | None:
        now = time.monotonic()
        return self._increments.take(self.totals(), now) if self._increments.due(now) else None

    def close(self) -> None:
        self.session.abandon()


def usable_settings(extra_config: dict[str, Any]) -> tuple[Settings, list[str]]:
    """Without what this version of vLLM has no hooks for."""
    settings, warnings = read_settings(extra_config)
    if settings.layerwise_loads and not compat.LAYERWISE:
        warnings.append(f"vLLM {compat.vllm_version()} has no hooks for flexkv.layerwise_loads")
        settings = replace(settings, layerwise_loads=False)
    return settings, warnings


class FlexKVConnector(compat.KVConnectorBase_V1):  # type: ignore[misc]
    """The class named in --kv-transfer-config."""

    _cache_hit_source = compat.HOST_SOURCE

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        try:
            self._open(vllm_config, role, kv_cache_config)
        except Exception:
            logger.exception("FlexKV is off: it could not be set up")

    def _open(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        transfer = vllm_config.kv_transfer_config
        settings, warnings = usable_settings(transfer.kv_connector_extra_config)
        if role == compat.KVConnectorRole.SCHEDULER:
            for warning in warnings:
                logger.warning("FlexKV: %s", warning)
            set_failure_policy(transfer, settings)
            arm_faults_once()
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, settings)
        else:
            self._worker = WorkerSide(vllm_config, kv_cache_config, settings)
            arm_faults_once()

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # a dropped store is a miss later

    # --- scheduler's side -------------------------------------------------------------------------

    def _on_scheduler(self, hook: str, call: Callable[[SchedulerSide], Any], otherwise: Any) -> Any:
        side = self._scheduler
        if side is None:
            return otherwise
        try:
            return call(side)
        except Exception as error:
            side.fail(hook, error)
            return otherwise

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._on_scheduler("bind_kv_cache_manager", lambda side: side.bind_kv_cache_manager(kv_cache_manager), None)

    def on_new_request(self, request: Any) -> None:
        self._on_scheduler("on_new_request", lambda side: side.on_new_request(request), None)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        side = self._scheduler
        if side is None:
            return 0, False
        try:
            return side.matched_tokens(request, num_computed_tokens)
        except Exception as error:
            side.fail("get_num_new_matched_tokens", error)
            return 0, False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        side = self._scheduler
        if side is None:
            return
        try:
            side.blocks_allocated(request, blocks, num_external_tokens)
        except Exception as error:
            side.fail("update_state_after_alloc", error)
        if num_external_tokens > 0 and side.session is None:
            side.promise_failed(request, blocks)

    def build_connector_meta(self, scheduler_output: Any) -> FlexKVMetadata:
        return FlexKVMetadata() if self._scheduler is None else self._scheduler.build_metadata(scheduler_output)

    def update_connector_output(self, connector_output: Any) -> None:
        self._on_scheduler("update_connector_output", lambda side: side.update_output(connector_output), None)

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        # False also while a load is outstanding: vLLM delays the free by itself then.
        self._on_scheduler("request_finished", lambda side: side.request_finished(request), None)
        return False, None

    def reset_cache(self) -> bool | None:
        return bool(self._on_scheduler("reset_cache", lambda side: side.reset_cache(), False))

    # --- worker's side ----------------------------------------------------------------------------

    def _on_worker(self, hook: str, call: Callable[[WorkerSide], Any]) -> Any:
        side = self._worker
        if side is None:
            return None
        try:
            return call(side)
        except Exception as error:
            side.fail(hook, error)
            return None

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._on_worker("register_kv_caches", lambda side: side.register(kv_caches))

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        self._on_worker("handle_preemptions", lambda side: side.fence(kv_connector_metadata))

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._on_worker("bind_connector_metadata", lambda side: side.bind(connector_metadata))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Asynchronous loads start when the metadata is bound; layer-wise ones here."""
        if self._worker is not None and (layers := self._worker.layers) is not None:
            self._on_worker("start_load_kv", lambda _: layers.start())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Called by every layer of every forward. Other loads need no wait: their requests are not scheduled yet."""
        if self._worker is not None and (layers := self._worker.layers) is not None and layers.watching:
            self._on_worker("wait_for_layer_load", lambda _: layers.layer(layer_name))

    def reset_capture_state(self) -> None:
        """Graphs are captured without metadata: nothing of ours is in them, and nothing is kept for them."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Whole blocks are stored after the step."""

    def wait_for_save(self) -> None:
        self._on_worker("wait_for_save", lambda side: side.step_done())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        ended = self._on_worker("get_finished", lambda side: side.poll())
        if ended is None and self._worker is not None and self._worker.errors:
            ended = self._on_worker("get_finished", lambda side: side.poll())  # what fail() left to report
        return None, ended

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._worker is None else self._worker.reports.take_failed_blocks()

    def build_connector_worker_meta(self) -> FlexKVWorkerMetadata | None:
        return None if self._worker is None else self._worker.reports.take_metadata()

    # --- both -------------------------------------------------------------------------------------

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return usable_settings(extra_config)[0].layerwise_loads

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: Any) -> str | None:
        settings, _ = read_settings(vllm_config.kv_transfer_config.kv_connector_extra_config)
        return layout.preferred_layout(vllm_config) if settings.kv_layout == "auto" else None

    def get_kv_connector_stats(self) -> FlexKVStats | None:
        side = self._scheduler or self._worker
        try:
            return None if side is None else side.take_stats()
        except Exception:
            logger.exception("FlexKV's statistics failed")
            return None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> FlexKVStats | None:
        return FlexKVStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> FlexKVPromMetrics:
        return FlexKVPromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def take_events(self) -> Iterable[Any]:
        return ()

    def shutdown(self) -> None:
        for side in (self._scheduler, self._worker):
            try:
                if side is not None:
                    side.close()
            except Exception:
                logger.exception("FlexKV's shutdown failed")
