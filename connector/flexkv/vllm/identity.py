"""What decides the meaning of cached bytes and is not in the engine's block hashes, as canonical JSON.

Two engines share blocks exactly when these texts are equal. Whatever cannot be known (weights without files, hashes
with a random seed) is replaced by a random number: such an engine shares with nobody, but still uses the cache itself.
LoRA adapters: vLLM's hash names an adapter by its name and path, not by content, and an adapter can be replaced at
its path or reloaded while the engine runs, which the scheduler's process cannot see. Requests with an adapter are
therefore not cached at all (connector.py); the flag here only keeps engines apart whose kernels differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from flexkv.vllm import compat

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
CONFIG_NAMES = ("config.json", "generation_config.json", "params.json", "quantize_config.json", "hf_quant_config.json")
SAMPLE_CHUNKS = 256
SAMPLE_BYTES = 4096

_file_digests: dict[tuple[str, int, int], str] = {}


def file_digest(path: Path) -> str:
    """Size, time of change and a content sample of one file: 256 pieces of 4 KiB, or all of a small file."""
    info = path.stat()
    key = (str(path.resolve()), info.st_mtime_ns, info.st_size)
    known = _file_digests.get(key)
    if known is not None:
        return known
    digest = hashlib.sha256(f"{info.st_size} {info.st_mtime_ns}\n".encode())
    with path.open("rb") as file:
        if info.st_size <= SAMPLE_CHUNKS * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for i in range(SAMPLE_CHUNKS):
                file.seek((info.st_size - SAMPLE_BYTES) * i // (SAMPLE_CHUNKS - 1))
                digest.update(file.read(SAMPLE_BYTES))
    _file_digests[key] = digest.hexdigest()
    return _file_digests[key]


def directory_digest(directory: Path) -> str | None:
    """Digest of a model directory; None when it holds no weights."""
    digest = hashlib.sha256()
    found_weights = False
    for path in sorted(directory.rglob("*")):
        is_weight = path.suffix in WEIGHT_SUFFIXES
        if not (is_weight or path.name in CONFIG_NAMES or path.name.endswith(".index.json")) or not path.is_file():
            continue
        found_weights |= is_weight
        content = file_digest(path) if is_weight else hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(directory)} {content}\n".encode())
    return digest.hexdigest() if found_weights else None


def _local_path(model: str, revision: str | None, download_dir: str | None) -> Path | None:
    path = Path(model)
    if path.exists():
        return path
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, cache_dir=download_dir, local_files_only=True))
    except Exception:  # not in the local cache, or not a name the hub knows
        return None


def weights_digest(model_config: Any, load_config: Any) -> str | None:
    """Digest of the weights that this engine loaded; None when they cannot be told from files."""
    if str(getattr(load_config, "load_format", "auto")).endswith("dummy"):
        return None
    model = getattr(model_config, "model_weights", "") or model_config.model
    path = _local_path(model, getattr(model_config, "revision", None), getattr(load_config, "download_dir", None))
    if path is None:
        return None
    try:
        return file_digest(path) if path.is_file() else directory_digest(path)
    except OSError:
        return None


def _private(why: str) -> str:
    return f"{why}:{secrets.token_hex(16)}"


def expected_none_hash(algorithm: str) -> bytes | None:
    """NONE_HASH as it will be in every process of this configuration; None when it is random."""
    from vllm.v1.core import kv_cache_utils

    try:
        from vllm.utils.hashing import get_hash_fn_by_name

        function = get_hash_fn_by_name(algorithm)
    except Exception:
        return None
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is None:
        if function in getattr(kv_cache_utils, "_NON_CRYPTO_HASH_FUNCTIONS", ()):
            return None
        seed = getattr(kv_cache_utils, "DEFAULT_NONE_HASH_SEED", None)
        if seed is None:  # before 0.32 the seed was random
            return None
    return bytes(function(seed))


def _config_digest(hf_config: Any) -> str:
    try:
        text = hf_config.to_json_string(use_diff=False)
    except Exception:
        text = json.dumps(hf_config.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(vllm_config: Any, kv_cache_config: Any) -> tuple[str, list[str]]:
    """The text, and sentences about what keeps this engine from sharing."""
    model = vllm_config.model_config
    cache = vllm_config.cache_config
    parallel = vllm_config.parallel_config
    notes: list[str] = []

    none_hash = expected_none_hash(cache.prefix_caching_hash_algo)
    if none_hash is None:
        notes.append(
            f"block hashes by {cache.prefix_caching_hash_algo} have a random seed (set PYTHONHASHSEED, or use sha256)"
        )
    weights = weights_digest(model, vllm_config.load_config)
    if weights is None:
        notes.append("the weights cannot be identified by their files")
    draft_model = getattr(vllm_config.speculative_config, "draft_model_config", None)
    draft = "" if draft_model is None else weights_digest(draft_model, vllm_config.load_config)
    if draft is None:
        notes.append("the draft model's weights cannot be identified by their files")
    if getattr(cache, "calculate_kv_scales", False):
        notes.append("KV scales are measured while the engine runs")

    facts = {
        "format": 1,
        "engine": f"vllm {compat.vllm_version()}",
        "hash_algorithm": cache.prefix_caching_hash_algo,
        "none_hash": none_hash.hex() if none_hash is not None else _private("random seed"),
        "model_config": _config_digest(model.hf_config),
        "weights": weights or _private("unknown weights"),
        "draft_weights": draft if draft is not None else _private("unknown weights"),
        "kv_scales": _private("measured") if getattr(cache, "calculate_kv_scales", False) else "",
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "kv_dtype": str(cache.cache_dtype),
        "lora": vllm_config.lora_config is not None,
        "block_tokens": block_tokens(vllm_config, kv_cache_config),
        "parallel": {
            "tp": parallel.tensor_parallel_size,
            "pp": parallel.pipeline_parallel_size,
            "dcp": getattr(parallel, "decode_context_parallel_size", 1),
            "pcp": getattr(parallel, "prefill_context_parallel_size", 1),
            "expert": getattr(parallel, "enable_expert_parallel", False),
        },
        "groups": [
            {"spec": repr(group.kv_cache_spec), "layers": list(group.layer_names)}
            for group in kv_cache_config.kv_cache_groups
        ],
        "layout": str(getattr(kv_cache_config, "kv_cache_layout", None)),
        "attention": str(getattr(getattr(vllm_config, "attention_config", None), "backend", None)),
        "device": str(vllm_config.device_config.device_type),
    }
    return json.dumps(facts, sort_keys=True, separators=(",", ":")), notes


def _layer_specs(kv_cache_config: Any) -> list[Any]:
    specs: list[Any] = []
    for group in kv_cache_config.kv_cache_groups:
        of_layers = getattr(group.kv_cache_spec, "kv_cache_specs", None)  # a group of several kinds, by layer
        specs.extend(of_layers.values() if of_layers else [group.kv_cache_spec])
    return specs


def ranks_are_replicas(vllm_config: Any, kv_cache_config: Any) -> bool:
    """Whether every rank of this engine holds the same bytes in every block, so that one copy serves all.

    So it is where each rank computes and keeps the whole latent vector of MLA: under tensor parallelism alone. vLLM
    says how many ranks hold identical KV (kv_tp_replicas, new in 0.32: the greatest number that holds for all layers).
    That number is also the ranks' where grouped heads are replicated, and it knows nothing of scales, so more is asked:
    only plain MLA pages, no scales of a rank's own (measured while running, or per token and head), and no other way
    of splitting the model.
    """
    parallel = vllm_config.parallel_config
    ranks = int(parallel.tensor_parallel_size)
    if ranks < 2 or getattr(kv_cache_config, "kv_tp_replicas", 1) != ranks or parallel.world_size != ranks:
        return False
    split_otherwise = ("pipeline_parallel_size", "prefill_context_parallel_size", "decode_context_parallel_size")
    if any(getattr(parallel, name, 1) > 1 for name in split_otherwise):
        return False
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        return False
    specs = _layer_specs(kv_cache_config)
    return bool(specs) and all(
        type(spec).__name__ == "MLAAttentionSpec"
        and getattr(spec, "tokens_per_state", 1) == 1
        and not getattr(getattr(spec, "kv_quant_mode", None), "is_per_token_head", False)
        for spec in specs
    )


def block_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    """Tokens that one block hash stands for."""
    return int(getattr(kv_cache_config, "hash_block_size", None) or vllm_config.cache_config.block_size)


def engine_cache_bytes(vllm_config: Any, kv_cache_config: Any) -> int:
    """The engine's own KV cache on all its ranks; of replicas on one, since the daemon too keeps one copy."""
    block = sum(
        group.kv_cache_spec.page_size_bytes * len(group.layer_names) for group in kv_cache_config.kv_cache_groups
    )
    replicas = ranks_are_replicas(vllm_config, kv_cache_config)
    copies = 1 if replicas else vllm_config.parallel_config.tensor_parallel_size
    return int(kv_cache_config.num_blocks * block * copies)


def engine_id(vllm_config: Any) -> tuple[int, int]:
    """128 bits that the scheduler and all ranks of one engine start agree on, and nobody else.

    vLLM hands the same KVTransferConfig to all of them: its engine_id is random unless a user sets it, and
    each data-parallel rank gets one of its own. For the case that it is set, instance_id, which vLLM draws
    at every start, is mixed in: a restarted engine must not be taken for the one before.
    """
    text = f"{vllm_config.kv_transfer_config.engine_id}\n{getattr(vllm_config, 'instance_id', '')}"
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") or 1, int.from_bytes(digest[8:16], "little")
