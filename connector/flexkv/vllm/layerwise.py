"""Layer-wise loads: the engine computes with the first layers of a hit while the last ones arrive.

vLLM takes such a load as a synchronous one: the request is scheduled in the very step that loads it. When the load
fails, what that step computed is worthless, and vLLM can only mend it safely by ending the request: its other policy,
"recompute", leaves wrong blocks in the prefix cache until they are overwritten, and under asynchronous scheduling lets
a token out that was computed from them. So with layer-wise loads the policy is "fail" (sessions.py), and asynchronous
loads, whose failure costs nothing but time, are recomputed from here (RecomputedLoads), unseen by that policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.logger import init_logger

from flexkv import _core
from flexkv.vllm import compat

logger = init_logger("vllm.flexkv")


@dataclass
class FlexKVWorkerMetadata(compat.KVConnectorWorkerMetadata):  # type: ignore[misc]
    """What workers tell the scheduler's side at the end of a step, of one rank or of several."""

    layer_ends: list[tuple[int, bool]] = field(default_factory=list)  # op, whether it failed; once per rank
    failed_blocks: set[int] = field(default_factory=set)  # of asynchronous loads

    def aggregate(self, other: Any) -> FlexKVWorkerMetadata:
        return FlexKVWorkerMetadata(
            self.layer_ends + other.layer_ends,
            self.failed_blocks | other.failed_blocks,
        )


class LayerWatch:
    """A worker's side: waits for layers inside the forward.

    A layer whose attention never asks for its bytes must not be left to itself. So until every layer has been seen to
    ask in some step, and where whole graphs are replayed in which nobody asks, a step waits for all of them first.
    """

    def __init__(self, session: _core.WorkerSession, *, never_asks: bool) -> None:
        self._session = session
        self._unseen: set[str] = set()
        self._never_asks = never_asks
        self._under_way = False
        self.watching = False

    def expect(self, layers: list[str]) -> None:
        self._unseen = set(layers)
        self._under_way = False
        self.watching = bool(self._unseen) and not self._never_asks

    def start(self) -> None:
        """Before the forward."""
        if not self._session.start_layer_loads():
            return
        if self._unseen or self._never_asks:
            self._session.wait_for_all_layers()
        else:
            self._under_way = self.watching = True

    def layer(self, name: str) -> None:
        """Before the attention of this layer."""
        self._unseen.discard(name)
        if self._under_way:
            self._session.wait_for_layer(name)

    def step_done(self) -> None:
        self._under_way = False
        self.watching = bool(self._unseen) and not self._never_asks


class RecomputedLoads:
    """The scheduler's side: asynchronous loads that failed are computed, whatever vLLM's policy for failed loads is.

    Does what vLLM's scheduler does under "recompute": the request's computed tokens end before the first block that did
    not arrive.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._manager: Any = None
        self._loading: dict[str, Any] = {}  # requests by id
        self._valid_blocks: dict[str, int] = {}  # of those whose load has failed

    def bind(self, manager: Any) -> None:
        self._manager = manager

    def started(self, request: Any) -> None:
        self._loading[request.request_id] = request

    def note_failed(self, failed_blocks: set[int]) -> None:
        """Ranks tell in steps of their own, at the latest with the end of the load."""
        for request_id in self._loading:
            for position, block in enumerate(self._manager.get_block_ids(request_id)[0]):
                if block in failed_blocks:
                    self._valid_blocks[request_id] = min(position, self._valid_blocks.get(request_id, position))
                    break

    def ended(self, request_id: str) -> bool:
        """Before vLLM hears of the end. Whether the load failed."""
        request = self._loading.pop(request_id, None)
        valid_blocks = self._valid_blocks.pop(request_id, None)
        if valid_blocks is None or request is None:
            return False
        if not request.is_finished():
            request.num_computed_tokens = valid_blocks * self._block_tokens
            if valid_blocks == 0:  # it is scheduled as if it were new
                self._manager.free(request)
            logger.warning("FlexKV: a load of request %s failed; its tokens are computed", request_id)
        return True

    def evict(self, request_id: str, blocks: list[int]) -> None:
        """A layer-wise load failed: nobody may find what it left behind. vLLM ends its request."""
        self._manager.evict_blocks(set(blocks))
        logger.error(
            "FlexKV: the layer-wise load of request %s failed after the engine began to compute with it: "
            "the request ends with an error",
            request_id,
        )
