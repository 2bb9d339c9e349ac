"""The reduced mode: behind the FlexKVConnectorV1 that ships inside vLLM.

That shim gives us (vllm_config, role) only and forwards neither step metadata nor fences nor new requests. So lookups
happen when the engine first asks for matched tokens; blocks are stored only when a request ends, and held by the engine
until every rank's copy is over; the scheduler's side hands its plans to the workers over a small shared table
(flexkv/client/plan_board.h). README says what this mode lacks beside FlexKVConnector.

As there, nothing raises into the engine. After an error a side takes on nothing new, but goes on settling what it
promised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from flexkv import _core
from flexkv.vllm import compat, layout
from flexkv.vllm.connector import FlexKVMetadata
from flexkv.vllm.hints import HintReader
from flexkv.vllm.sessions import (
    LoadEnds,
    LoadReports,
    arm_faults_once,
    open_scheduler,
    open_worker,
    set_failure_policy,
)
from flexkv.vllm.settings import Settings, read_settings
from flexkv.vllm.stats import FlexKVStats

if TYPE_CHECKING:
    import torch

logger = init_logger("vllm.flexkv")


class ReducedScheduler:
    """The scheduler's side."""

    def __init__(self, vllm_config: Any, settings: Settings) -> None:
        self._off = False
        self._known: set[str] = set()
        self._hints = HintReader()
        self.ends = LoadEnds()
        # Specifications of the KV groups are not ours to see here; the workers' layouts tell namespaces apart.
        blind = SimpleNamespace(kv_cache_groups=[], hash_block_size=None, kv_cache_layout="reduced")
        self.session = open_scheduler(vllm_config, blind, settings, block_tables_change=False, reduced=True)

    def fail(self, hook: str, error: Exception) -> None:
        if not self._off:
            logger.error("FlexKV takes on nothing new after an error in %s", hook, exc_info=error)
        self._off = True

    def matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._off or request.skip_reading_prefix_cache:
            return 0, False
        if request.request_id not in self._known:
            self._known.add(request.request_id)
            # An adapter's content is not part of the identity (identity.py).
            self.session.new_request(request, request.lora_request is None, *self._hints.read(request))
        return self.session.matched_tokens(request, num_computed_tokens)

    def request_finished(self, request: Any, block_ids: list[int]) -> bool:
        if request.request_id not in self._known:
            return False
        self._known.discard(request.request_id)
        # With a load under way the engine delays the free by itself, and a second report would kill it.
        if self._off or self.session.load_outstanding(request.request_id):
            self.session.request_finished(request.request_id)
            return False
        return self.session.finish_with_store(request, block_ids, request.num_computed_tokens)


class ReducedWorker:
    """The worker's side."""

    def __init__(self, vllm_config: Any, settings: Settings) -> None:
        self._vllm_config = vllm_config
        self._settings = settings
        self.session = _core.WorkerSession()
        self.reports = LoadReports()
        self._errors = 0

    def fail(self, hook: str, error: Exception) -> None:
        self._errors += 1
        if self._errors == 1:
            logger.error("FlexKV had an error in %s", hook, exc_info=error)

    def _kv_cache_config(self, kv_caches: dict[str, torch.Tensor]) -> Any:
        """What the shim does not hand over, from the layers themselves."""
        layers = self._vllm_config.compilation_config.static_forward_context
        specs = {}
        for name in kv_caches:
            if name not in layers:
                raise layout.UnknownLayoutError(f"layer {name} is not one of the model's")
            specs[name] = layers[name].get_kv_cache_spec(self._vllm_config)
        first = next(iter(specs.values()))
        if any(spec != first for spec in specs.values()):
            raise layout.UnknownLayoutError("the model has several kinds of KV cache, and the reduced mode serves one")
        group = SimpleNamespace(layer_names=list(specs), kv_cache_spec=first)
        return SimpleNamespace(
            kv_cache_groups=[group],
            num_blocks=self._vllm_config.cache_config.num_gpu_blocks,
            hash_block_size=None,
            kv_cache_layout="reduced",
        )

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        try:
            config = self._kv_cache_config(kv_caches)
            open_worker(self.session, self._vllm_config, config, kv_caches, self._settings, reduced=True)
        except (layout.UnknownLayoutError, ValueError) as error:
            logger.warning("FlexKV is off for this worker: %s", error)

    def poll(self) -> tuple[set[str] | None, set[str] | None]:
        """Requests whose store, and whose load, is over on this rank."""
        loads = self.reports.poll(self.session)
        return set(self.session.take_ended_stores()) or None, loads


class FlexKVConnectorV1Impl:
    """What vLLM's FlexKVConnectorV1 imports and calls."""

    def __init__(self, vllm_config: Any, role: Any) -> None:
        self._scheduler: ReducedScheduler | None = None
        self._worker: ReducedWorker | None = None
        try:
            self._open(vllm_config, role)
        except Exception:
            logger.exception("FlexKV is off: it could not be set up")

    def _open(self, vllm_config: Any, role: Any) -> None:
        transfer = vllm_config.kv_transfer_config
        settings, warnings = read_settings(transfer.kv_connector_extra_config)
        arm_faults_once()
        if role != compat.KVConnectorRole.SCHEDULER:
            self._worker = ReducedWorker(vllm_config, settings)
            return
        for warning in warnings:
            logger.warning("FlexKV: %s", warning)
        logger.info(
            "FlexKV runs in reduced mode: blocks are stored when a request ends. For all features use "
            '"kv_connector":"FlexKVConnector","kv_connector_module_path":"flexkv.vllm.connector"'
        )
        if settings.layerwise_loads:
            logger.warning("FlexKV: flexkv.layerwise_loads has no effect in reduced mode")
        set_failure_policy(transfer, replace(settings, layerwise_loads=False))
        self._scheduler = ReducedScheduler(vllm_config, settings)

    def _call(self, side: Any, hook: str, call: Callable[[Any], Any], otherwise: Any) -> Any:
        if side is None:
            return otherwise
        try:
            return call(side)
        except Exception as error:
            side.fail(hook, error)
            return otherwise

    # --- scheduler's side -------------------------------------------------------------------------

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        found = self._call(
            self._scheduler,
            "get_num_new_matched_tokens",
            lambda side: side.matched_tokens(request, num_computed_tokens),
            (0, False),
        )
        return found  # type: ignore[no-any-return]

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        self._call(
            self._scheduler,
            "update_state_after_alloc",
            lambda side: side.session.blocks_allocated(request, blocks, num_external_tokens),
            None,
        )

    def build_connector_meta(self, scheduler_output: Any) -> FlexKVMetadata:
        # The plan goes to the shared table; what is returned only says that there is a connector.
        self._call(self._scheduler, "build_connector_meta", lambda side: side.session.step(scheduler_output), None)
        return FlexKVMetadata()

    def update_connector_output(self, connector_output: Any) -> None:
        self._call(
            self._scheduler,
            "update_connector_output",
            lambda side: side.ends.take(side.session, connector_output),
            None,
        )

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        held = self._call(
            self._scheduler, "request_finished", lambda side: side.request_finished(request, block_ids), False
        )
        return bool(held), None

    def take_events(self) -> Iterable[Any]:
        return ()

    def get_kv_connector_stats(self) -> FlexKVStats | None:
        return None  # the shim builds no statistics of ours; `flexkv status` has them

    # --- worker's side ----------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self._call(self._worker, "register_kv_caches", lambda side: side.register(kv_caches), None)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self._call(self._worker, "start_load_kv", lambda side: side.session.take_board_plans(), None)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Loads are asynchronous."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Whole blocks are stored when the request has ended."""

    def wait_for_save(self) -> None:
        """The engine holds the blocks of a store until it is over."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        found = self._call(self._worker, "get_finished", lambda side: side.poll(), (None, None))
        return found  # type: ignore[no-any-return]

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self._worker is None else self._worker.reports.take_failed_blocks()

    # --- both -------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        self._call(self._scheduler, "shutdown", lambda side: side.session.close(), None)
        self._call(self._worker, "shutdown", lambda side: side.session.abandon(), None)
