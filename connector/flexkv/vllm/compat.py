"""All that depends on the version of vLLM, in one place."""

from __future__ import annotations

from typing import Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

__all__ = [
    "HOST_SOURCE",
    "LAYERWISE",
    "KVConnectorBase_V1",
    "KVConnectorMetadata",
    "KVConnectorPromMetrics",
    "KVConnectorRole",
    "KVConnectorStats",
    "KVConnectorWorkerMetadata",
    "none_hash",
    "sleep_allocator",
    "vllm_version",
]

try:  # 0.32: hits are told apart by the tier they came from
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    HOST_SOURCE: Any = CacheHitSource.HOST
except ImportError:
    HOST_SOURCE = None


# Layer-wise loads need a way back from the workers to the scheduler's side, and the scheduler's block tables.
try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata

    LAYERWISE = hasattr(KVConnectorBase_V1, "bind_kv_cache_manager")
except ImportError:
    KVConnectorWorkerMetadata = object
    LAYERWISE = False


def vllm_version() -> str:
    return str(vllm.__version__)


def none_hash() -> bytes:
    """The parent hash of every first block, as this process has it; b"" when there is none yet."""
    from vllm.v1.core import kv_cache_utils

    value = getattr(kv_cache_utils, "NONE_HASH", b"")
    return value if isinstance(value, bytes) else str(value).encode()


def sleep_allocator() -> Any:
    """What takes GPU memory away in sleep mode. ImportError where this vLLM has none."""
    from vllm.device_allocator import get_mem_allocator_instance

    return get_mem_allocator_instance()
