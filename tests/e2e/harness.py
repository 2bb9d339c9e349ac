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
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec
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
        token_major: bool = False,
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
        names = [f"layers.{i}.attn" for i in range(self.LAYERS)]
        common: dict[str, Any] = {
            "block_size": self.block_size,
            "num_kv_heads": self.KV_HEADS,
            "head_size": self.HEAD_DIM,
            "dtype": torch.float32,
        }
        spec = (
            SlidingWindowSpec(**common, sliding_window=sliding_window)
            if sliding_window
            else FullAttentionSpec(**common)
        )
        self.window = sliding_window
        kv_cache_config = KVCacheConfig(
            num_blocks=num_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(names, spec)]
        )
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
        self._make_tensors(names, num_blocks, token_major)
        self.worker.register_kv_caches(self.kv_caches)

        self.sequences: dict[str, Sequence] = {}
        self.prompt_lengths: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.promises: Counter[str] = Counter()
        self.reports: Counter[str] = Counter()
        self.failed_blocks = 0
        self.queue: deque[tuple[SchedulerOutput, ModelRunnerOutput | None]] = deque()
        self.steps = 0
        self._watch_promises()

    def _make_tensors(self, names: list[str], num_blocks: int, token_major: bool) -> None:
        """[block, head, token, K and V], with heads or tokens outermost in memory."""
        width = 2 * self.HEAD_DIM
        self.kv_caches: dict[str, torch.Tensor] = {}
        self.cells: list[np.ndarray] = []
        for name in names:
            if token_major:
                tensor = torch.zeros(num_blocks, self.block_size, self.KV_HEADS, width).permute(0, 2, 1, 3)
            else:
                tensor = torch.zeros(num_blocks, self.KV_HEADS, self.block_size, width)
            self.kv_caches[name] = tensor
            self.cells.append(tensor.numpy().view(np.int32))

    def _watch_promises(self) -> None:
        allocate = self.connector.update_state_after_alloc

        def update_state_after_alloc(request: Any, blocks: Any, num_external_tokens: int) -> None:
            if num_external_tokens > 0:
                self.promises[request.request_id] += 1
            allocate(request, blocks, num_external_tokens)

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
        self.scheduler.update_from_output(output, result)
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
        ids, tokens = self._forward(output)
        self.worker.start_load_kv(None)
        self.worker.finish_forward()
        self.worker.wait_for_save()
        transfers = self.worker.get_transfer_results(output.finished_req_ids)
        results = KVConnectorOutput(
            finished_sending=transfers.finished_sending or None,
            finished_recving=transfers.finished_recving or None,
            failed_recving=transfers.failed_recving,
            invalid_block_ids=self.worker.get_block_ids_with_load_errors(),
            kv_connector_stats=self.worker.get_kv_connector_stats(),
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
        for request_id, begin, _ in scheduled:
            self._write(request_id, begin, begin + output.num_scheduled_tokens[request_id])
        for request_id, begin, known in scheduled:
            end = begin + output.num_scheduled_tokens[request_id]
            self._check(request_id, begin)
            ids.append(request_id)
            tokens.append([self.sequences[request_id].token(end)] if end >= known else [])
        return ids, tokens

    def _expected(self, request_id: str, begin: int, end: int, layer: int) -> np.ndarray:
        """[token, head, cell] of the oracle."""
        sequence = self.sequences[request_id]
        sequence.reach(end)
        digests = np.array(sequence.digests[begin:end], dtype=np.uint64)
        cells = np.arange(self.KV_HEADS * 2 * self.HEAD_DIM, dtype=np.uint64) + np.uint64(1000 * (layer + 1))
        with np.errstate(over="ignore"):
            values = (digests[:, None] + cells[None, :]) * _PRIME
        return (values >> np.uint64(33)).astype(np.int32).reshape(end - begin, self.KV_HEADS, -1)

    def _places(self, request_id: str, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(begin, end)
        table = np.array(self.tables[request_id], dtype=np.int64)
        return table[positions // self.block_size], positions % self.block_size

    def _write(self, request_id: str, begin: int, end: int) -> None:
        blocks, offsets = self._places(request_id, begin, end)
        assert (blocks != 0).all(), "a token is written into the null block"
        for layer, cells in enumerate(self.cells):
            cells[blocks, :, offsets] = self._expected(request_id, begin, end, layer)

    def _check(self, request_id: str, end: int) -> None:
        """What attention would read for the next token."""
        begin = max(0, end - self.window + 1) if self.window else 0
        if begin >= end:
            return
        blocks, offsets = self._places(request_id, begin, end)
        for layer, cells in enumerate(self.cells):
            found = cells[blocks, :, offsets]
            expected = self._expected(request_id, begin, end, layer)
            if not np.array_equal(found, expected):
                wrong = int(np.argwhere((found != expected).any(axis=(1, 2)))[0][0]) + begin
                raise AssertionError(
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
        assert self.connector._scheduler.errors == 0
        assert self.worker._worker.errors == 0

    def close(self) -> None:
        self.scheduler.shutdown()
        self.worker.shutdown()
