"""vLLM's real Scheduler and KVCacheManager and the real connector on both sides, without a model.

The forward pass is played: it writes into the KV tensors what a content oracle says for (layer, tokens so far), and
reads back all that a real attention would read. So whatever a load brings that is not exactly what was stored for that
prefix, and whatever a copy writes into a block that has another owner, fails the next step that reads it. The next
token is a function of the tokens so far, which makes outputs comparable too.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kv_layouts import make_tensors
from tiny_model import SMALL, make_model
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import FinishReason
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

VOCAB = 1024
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


@dataclass
class Sequence:
    """The true tokens of a request, and per position a digest of all tokens up to it."""

    tokens: list[int]
    salt: str
    digests: list[int] = field(default_factory=list)

    def reach(self, length: int) -> None:
        """Makes tokens and digests for positions [0, length)."""
        while len(self.digests) < length:
            i = len(self.digests)
            if i == len(self.tokens):
                self.tokens.append(self.digests[-1] % VOCAB)
            before = self.digests[-1] if i else _mix(sum(self.salt.encode()) + 1)
            self.digests.append(_mix(before + self.tokens[i] + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF))

    def token(self, position: int) -> int:
        self.reach(position + 1)
        return self.tokens[position]


def make_config(
    model_dir: Path,
    socket_path: str,
    *,
    block_size: int = 16,
    num_blocks: int = 64,
    max_num_batched_tokens: int = 128,
    max_num_seqs: int = 16,
    max_model_len: int = 1024,
    async_scheduling: bool = False,
    extra: dict[str, Any] | None = None,
) -> VllmConfig:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    arguments = EngineArgs(
        model=str(make_model(model_dir, SMALL)),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_seqs=max_num_seqs,
        enable_prefix_caching=True,
        enforce_eager=True,
        async_scheduling=async_scheduling,
        kv_transfer_config={
            "kv_connector": "FlexKVConnector",
            "kv_connector_module_path": "flexkv.vllm.connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {
                "flexkv.socket": socket_path,
                "flexkv.autostart": False,
                "flexkv.min_load_tokens": 0,
                "flexkv.lookup_wait_us": 2000,
                "flexkv.lookup_timeout_ms": 1000,
                **(extra or {}),
            },
        },
    )
    config = arguments.create_engine_config()
    config.cache_config.block_size = block_size
    config.cache_config.num_gpu_blocks = num_blocks
    return config


class Engine:
    """Scheduler, one worker and `depth` batches in flight (1: synchronous, 2: asynchronous scheduling)."""

    LAYERS = 3
    KV_HEADS = 2
    HEAD_DIM = 4

    def __init__(
        self,
        config: VllmConfig,
        *,
        depth: int = 1,
        layout: str = "LBHNC",
        kernel_tokens: int | None = None,
        block_padding: int = 0,
        mla: bool = False,
        sliding_window: int = 0,
        v2_runner: bool = False,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.rng = rng or random.Random(0)
        self.depth = depth
        self.block_size = config.cache_config.block_size
        num_blocks = config.cache_config.num_gpu_blocks
        assert num_blocks is not None
        self.names = [f"layers.{i}.attn" for i in range(self.LAYERS)]
        self.kv_heads = 1 if mla else self.KV_HEADS
        common: dict[str, Any] = {
            "block_size": self.block_size,
            "num_kv_heads": self.kv_heads,
            "head_size": 2 * self.HEAD_DIM if mla else self.HEAD_DIM,
            "dtype": torch.float32,
        }
        self.spec: Any
        if sliding_window:
            self.spec = SlidingWindowSpec(**common, sliding_window=sliding_window)
        else:
            self.spec = MLAAttentionSpec(**common) if mla else FullAttentionSpec(**common)
        self.window = sliding_window
        self.layout, self.block_padding = layout, block_padding
        self.kernel_tokens = kernel_tokens or self.block_size
        kv_cache_config = KVCacheConfig(
            num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(self.names, self.spec)]
        )
        kv_cache_config.kv_cache_layout = layout
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(self.block_size, sha256)
        self.worker: Any = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER, kv_cache_config)
        kind = AsyncScheduler if depth > 1 else Scheduler
        self.scheduler = kind(
            vllm_config=config,
            kv_cache_config=kv_cache_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=self.block_size,
            log_stats=True,
        )
        # The second model runner needs Triton to be configured; how the scheduler talks to it does not.
        self.scheduler.use_v2_model_runner = v2_runner
        self.connector: Any = self.scheduler.connector
        self.kv_caches: dict[str, torch.Tensor] = {}
        self.cells: list[np.ndarray] = []
        self.new_tensors()

        self.sequences: dict[str, Sequence] = {}
        self.prompt_lengths: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.async_offers: dict[str, bool] = {}
        self.layer_promises = 0
        self.misread: dict[str, str] = {}
        self.errored: set[str] = set()
        self.promises: Counter[str] = Counter()
        self.reports: Counter[str] = Counter()
        self.failed_blocks = 0
        self.queue: deque[tuple[SchedulerOutput, ModelRunnerOutput | None]] = deque()
        self.steps = 0
        self._watch_promises()

    def new_tensors(self) -> None:
        """[block, head, token, K and V], registered with the connector; also as after sleep, when all is lost."""
        num_blocks = self.config.cache_config.num_gpu_blocks
        assert num_blocks is not None
        self.kv_caches = make_tensors(
            self.spec,
            self.names,
            num_blocks,
            self.layout,
            kernel_tokens=self.kernel_tokens,
            block_padding=self.block_padding,
        )
        self.cells = [tensor.numpy().view(np.int32) for tensor in self.kv_caches.values()]
        self.worker.register_kv_caches(self.kv_caches)

    def _watch_promises(self) -> None:
        matched, allocate = self.connector.get_num_new_matched_tokens, self.connector.update_state_after_alloc

        def get_num_new_matched_tokens(request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
            tokens, is_async = matched(request, num_computed_tokens)
            self.async_offers[request.request_id] = is_async
            return tokens, is_async

        def update_state_after_alloc(request: Any, blocks: Any, num_external_tokens: int) -> None:
            if num_external_tokens > 0 and self.async_offers[request.request_id]:
                self.promises[request.request_id] += 1
            elif num_external_tokens > 0:
                self.layer_promises += 1
            allocate(request, blocks, num_external_tokens)

        self.connector.get_num_new_matched_tokens = get_num_new_matched_tokens
        self.connector.update_state_after_alloc = update_state_after_alloc

    # --- requests ---------------------------------------------------------------------------------

    def wait_ready(self) -> None:
        assert self.connector._scheduler.session.wait_ready(10_000), "the daemon does not report the engine as ready"

    def add(
        self, request_id: str, prompt: list[int], max_tokens: int = 8, salt: str | None = None, hint: Any = None
    ) -> None:
        self.scheduler.add_request(self.make_request(request_id, prompt, max_tokens, salt, hint))

    def make_request(
        self, request_id: str, prompt: list[int], max_tokens: int = 8, salt: str | None = None, hint: Any = None
    ) -> Request:
        """A request with its block hashes, as the engine's input thread hands it to the scheduler's."""
        self.sequences[request_id] = Sequence(list(prompt), salt or "")
        self.prompt_lengths[request_id] = len(prompt)
        self.outputs[request_id] = []
        return Request(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            sampling_params=SamplingParams(
                max_tokens=max_tokens,
                ignore_eos=True,
                temperature=0,
                extra_args={"kv_transfer_params": {"flexkv.hint": hint}} if hint is not None else None,
            ),
            pooling_params=None,
            block_hasher=self.hasher,
            cache_salt=salt,
        )

    def abort(self, request_id: str) -> None:
        if request_id in self.scheduler.requests:
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def busy(self) -> bool:
        return bool(self.queue) or self.scheduler.has_requests()

    # --- steps ------------------------------------------------------------------------------------

    def step(self) -> None:
        """Schedules a batch and runs it, or leaves it in flight while the next is scheduled."""
        self.steps += 1
        if self.scheduler.has_requests() or not self.queue:
            output = self.scheduler.schedule()
            self.queue.append((output, None))
            if self.rng.random() < 0.5:  # the batch starts at once, else when its result is waited for
                self._run_queued()
            if len(self.queue) < self.depth and self.scheduler.has_requests() and output.total_num_scheduled_tokens:
                return
        self._run_queued()
        output, result = self.queue.popleft()
        assert result is not None
        for answers in self.scheduler.update_from_output(output, result).values():
            self.errored.update(
                answer.request_id for answer in answers.outputs if answer.finish_reason == FinishReason.ERROR
            )
        for request_id in result.req_ids:  # who has read what did not arrive must hear of it before anything else
            if request_id in self.misread and request_id not in self.errored:
                raise AssertionError(self.misread[request_id])
        for request_id, tokens in zip(result.req_ids, result.sampled_token_ids, strict=True):
            self.outputs[request_id] += tokens

    def run(self, max_steps: int = 20_000) -> None:
        for _ in range(max_steps):
            if not self.busy():
                return
            self.step()
        raise AssertionError(f"requests still wait after {max_steps} steps: {list(self.scheduler.requests)}")

    def _run_queued(self) -> None:
        for i, (output, result) in enumerate(self.queue):
            if result is None:
                self.queue[i] = (output, self._execute(output))

    def _execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """The connector calls of a model runner, in its order, around the played forward pass."""
        metadata = output.kv_connector_metadata
        self.worker.handle_preemptions(metadata)
        tables_first = self.rng.random() < 0.5
        if tables_first:
            self._update_tables(output)
        self.worker.bind_connector_metadata(metadata)
        if not tables_first:
            self._update_tables(output)
        if output.has_sync_kv_loads:
            self.worker.start_load_kv(None)
        ids, tokens = self._forward(output)
        self.worker.finish_forward()
        if not output.has_sync_kv_loads:
            self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        transfers = self.worker.get_transfer_results(output.finished_req_ids)
        results = KVConnectorOutput(
            finished_sending=transfers.finished_sending or None,
            finished_recving=transfers.finished_recving or None,
            failed_recving=transfers.failed_recving,
            invalid_block_ids=self.worker.get_block_ids_with_load_errors(),
            kv_connector_stats=self.worker.get_kv_connector_stats(),
            kv_connector_worker_meta=self.worker.build_connector_worker_meta(),
        )
        self.worker.clear_connector_metadata()
        self.reports.update(transfers.finished_recving)
        self.failed_blocks += len(results.invalid_block_ids)
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=tokens,
            kv_connector_output=results,
        )

    def _update_tables(self, output: SchedulerOutput) -> None:
        for new in output.scheduled_new_reqs:
            self.tables[new.req_id] = list(new.block_ids[0])
        cached = output.scheduled_cached_reqs
        for request_id, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if request_id in cached.resumed_req_ids:
                assert blocks is not None
                self.tables[request_id] = list(blocks[0])
            elif blocks is not None:
                self.tables[request_id] += blocks[0]

    def _forward(self, output: SchedulerOutput) -> tuple[list[str], list[list[int]]]:
        # request, tokens computed before this step, tokens that are known (those of steps in flight included)
        scheduled = [
            (new.req_id, new.num_computed_tokens, len(new.prefill_token_ids or new.prompt_token_ids or ()))
            for new in output.scheduled_new_reqs
        ]
        cached = output.scheduled_cached_reqs
        for request_id, computed, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            scheduled.append((request_id, computed, self.prompt_lengths[request_id] + outputs))
        ids: list[str] = []
        tokens: list[list[int]] = []
        # All write before any reads, as in a layer: vLLM lets a request use blocks that another fills in the same step.
        # What was loaded is asked for only between the two.
        for layer, name in enumerate(self.names if scheduled else ()):
            for request_id, begin, _ in scheduled:
                self._write(request_id, begin, begin + output.num_scheduled_tokens[request_id], layer)
            self.worker.wait_for_layer_load(name)
            for request_id, begin, _ in scheduled:
                self._check(request_id, begin, layer)
        for request_id, begin, known in scheduled:
            end = begin + output.num_scheduled_tokens[request_id]
            ids.append(request_id)
            tokens.append([self.sequences[request_id].token(end)] if end >= known else [])
        return ids, tokens

    def _expected(self, request_id: str, begin: int, end: int, layer: int) -> np.ndarray:
        """[token, head, cell] of the oracle."""
        sequence = self.sequences[request_id]
        sequence.reach(end)
        digests = np.array(sequence.digests[begin:end], dtype=np.uint64)
        cells = np.arange(self.kv_heads * 2 * self.HEAD_DIM, dtype=np.uint64) + np.uint64(1000 * (layer + 1))
        with np.errstate(over="ignore"):
            values = (digests[:, None] + cells[None, :]) * _PRIME
        return (values >> np.uint64(33)).astype(np.int32).reshape(end - begin, self.kv_heads, -1)

    def _places(self, request_id: str, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(begin, end)
        table = np.array(self.tables[request_id], dtype=np.int64)
        blocks, offsets = table[positions // self.block_size], positions % self.block_size
        kernel_blocks = blocks * (self.block_size // self.kernel_tokens) + offsets // self.kernel_tokens
        return kernel_blocks, offsets % self.kernel_tokens

    def _write(self, request_id: str, begin: int, end: int, layer: int) -> None:
        blocks, offsets = self._places(request_id, begin, end)
        assert (blocks >= self.block_size // self.kernel_tokens).all(), "a token is written into the null block"
        self.cells[layer][blocks, :, offsets] = self._expected(request_id, begin, end, layer)

    def _check(self, request_id: str, end: int, layer: int) -> None:
        """What attention would read for the next token. A request that reads wrong bytes is remembered."""
        begin = max(0, end - self.window + 1) if self.window else 0
        if begin >= end:
            return
        blocks, offsets = self._places(request_id, begin, end)
        found = self.cells[layer][blocks, :, offsets]
        expected = self._expected(request_id, begin, end, layer)
        if not np.array_equal(found, expected):
            wrong = int(np.argwhere((found != expected).any(axis=(1, 2)))[0][0]) + begin
            self.misread[request_id] = (
                f"request {request_id}, layer {layer}: token {wrong} of {end} (block {wrong // self.block_size}, "
                f"GPU block {blocks[wrong - begin]}) is not what was computed for this prefix"
            )

    # --- what was achieved ------------------------------------------------------------------------

    def drop_local_cache(self) -> None:
        assert self.scheduler.reset_prefix_cache()

    def stats(self) -> dict[str, Any]:
        totals: dict[str, Any] = self.connector._scheduler.totals()
        return totals

    def check_promises(self) -> None:
        assert self.promises == self.reports, "every load promised is reported exactly once"
        stats = self.stats()
        ended = (stats["layer_loads"], stats["layer_loads_failed"])
        assert self.layer_promises == sum(ended), (self.layer_promises, ended, self.worker._worker.totals())
        assert self.connector._scheduler.errors == 0
        assert self.worker._worker.errors == 0

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()
