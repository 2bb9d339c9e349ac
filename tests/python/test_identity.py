from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flexkv.vllm import identity


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)  # 5 MB: sampled
    (tmp_path / "README.md").write_text("not part of the identity")
    return tmp_path


def test_the_same_files_have_the_same_digest(model: Path) -> None:
    first = identity.directory_digest(model)
    (model / "README.md").write_text("changed")
    assert identity.directory_digest(model) == first


@pytest.mark.parametrize("position", [0, 2_000_000, 5_119_999])
def test_changed_weights_are_seen(model: Path, position: int) -> None:
    first = identity.directory_digest(model)
    path = model / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"\xff\x00"[: 1 if position == 5_119_999 else 2])
    assert identity.directory_digest(model) != first


def test_replaced_content_is_seen_even_with_the_old_time(model: Path) -> None:
    path = model / "model.safetensors"
    before = path.stat()
    first = identity.directory_digest(model)
    path.write_bytes(bytes(reversed(range(256))) * 20_000)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    identity._file_digests.clear()  # another process
    assert identity.directory_digest(model) != first


def test_a_changed_config_is_seen(model: Path) -> None:
    first = identity.directory_digest(model)
    (model / "config.json").write_text('{"rope_theta": 1}')
    assert identity.directory_digest(model) != first


def test_a_directory_without_weights_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert identity.directory_digest(tmp_path) is None


def test_none_hash_is_that_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils

    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    for algorithm in ("sha256", "sha256_cbor"):
        kv_cache_utils.init_none_hash(get_hash_fn_by_name(algorithm))
        assert identity.expected_none_hash(algorithm) == kv_cache_utils.NONE_HASH
    assert identity.expected_none_hash("xxhash") is None
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    for algorithm in ("sha256", "xxhash"):
        try:
            kv_cache_utils.init_none_hash(get_hash_fn_by_name(algorithm))
        except ImportError:
            continue
        assert identity.expected_none_hash(algorithm) == kv_cache_utils.NONE_HASH


def _vllm_config(model: Path, **changes: Any) -> tuple[SimpleNamespace, SimpleNamespace]:
    hf_config = SimpleNamespace(to_json_string=lambda use_diff: "{}")
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(model), revision=None, hf_config=hf_config, dtype="float32", quantization=None
        ),
        cache_config=SimpleNamespace(
            prefix_caching_hash_algo="sha256", cache_dtype="auto", block_size=32, calculate_kv_scales=False
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        load_config=SimpleNamespace(load_format="auto", download_dir=None),
        speculative_config=None,
        lora_config=None,
        device_config=SimpleNamespace(device_type="cpu"),
        instance_id="abcde",
        kv_transfer_config=SimpleNamespace(engine_id="set by the user"),
    )
    for name, value in changes.items():
        part, field = name.split("__")
        setattr(getattr(config, part), field, value)
    kv_cache_config = SimpleNamespace(kv_cache_groups=[], kv_cache_layout="LBHNC", hash_block_size=32)
    return config, kv_cache_config


def test_equal_engines_share(model: Path) -> None:
    first, notes = identity.fingerprint(*_vllm_config(model))
    assert notes == []
    assert identity.fingerprint(*_vllm_config(model)) == (first, [])


@pytest.mark.parametrize(
    "change",
    [
        {"cache_config__cache_dtype": "fp8"},
        {"cache_config__prefix_caching_hash_algo": "sha256_cbor"},
        {"model_config__dtype": "bfloat16"},
        {"model_config__quantization": "awq"},
        {"parallel_config__tensor_parallel_size": 2},
        {"parallel_config__pipeline_parallel_size": 2},
    ],
)
def test_what_keeps_engines_apart(model: Path, change: dict[str, Any]) -> None:
    assert identity.fingerprint(*_vllm_config(model))[0] != identity.fingerprint(*_vllm_config(model, **change))[0]


@pytest.mark.parametrize(
    "change",
    [
        {"load_config__load_format": "dummy"},
        {"cache_config__prefix_caching_hash_algo": "xxhash"},
        {"cache_config__calculate_kv_scales": True},
        {"model_config__model": "no/such-model"},
    ],
)
def test_what_cannot_be_known_is_not_shared(
    model: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first, notes = identity.fingerprint(*_vllm_config(model, **change))
    assert notes
    assert first != identity.fingerprint(*_vllm_config(model, **change))[0]


def test_engine_ids() -> None:
    config, _ = _vllm_config(Path("x"))
    same = identity.engine_id(config)
    assert same == identity.engine_id(config)
    config.instance_id = "fghij"  # the next start of an engine whose id a user has set
    assert identity.engine_id(config) != same


def _engine(spec: Any, **changes: Any) -> tuple[SimpleNamespace, Any]:
    """An engine of four ranks with a group of layers of each of these kinds, as vLLM describes it."""
    from vllm.v1.core.kv_cache_utils import kv_cache_groups_tp_replicas
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    parallel = {"tensor_parallel_size": 4, "pipeline_parallel_size": 1, "decode_context_parallel_size": 1}
    parallel |= {"prefill_context_parallel_size": 1, "world_size": 4}
    cache = {"calculate_kv_scales": False}
    for name, value in changes.items():
        (cache if name in cache else parallel)[name] = value
    specs = spec if isinstance(spec, list) else [spec]
    groups = [KVCacheGroupSpec([f"layer.{i}"], each) for i, each in enumerate(specs)]
    config = KVCacheConfig(num_blocks=10, kv_cache_tensors=[], kv_cache_groups=groups)
    config.kv_tp_replicas = kv_cache_groups_tp_replicas(
        groups, parallel["tensor_parallel_size"], parallel["decode_context_parallel_size"]
    )
    return SimpleNamespace(parallel_config=SimpleNamespace(**parallel), cache_config=SimpleNamespace(**cache)), config


def _replicas(spec: Any, *, replicas: int = 4, **changes: Any) -> bool:
    """`replicas`: what vLLM says itself."""
    vllm_config, config = _engine(spec, **changes)
    assert config.kv_tp_replicas == replicas
    return identity.ranks_are_replicas(vllm_config, config)


def _mla(**changes: Any) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import MLAAttentionSpec

    facts: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 576, "dtype": torch.bfloat16}
    return MLAAttentionSpec(**(facts | {"dcp_sharded": True, "max_tp_shards": 1} | changes))


def _full(**changes: Any) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    facts: dict[str, Any] = {"block_size": 16, "num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}
    return FullAttentionSpec(**(facts | changes))


def test_mla_pages_are_the_same_on_all_ranks() -> None:
    import torch

    assert _replicas(_mla())
    assert _replicas([_mla(), _mla(head_size=128)])
    assert _replicas(_mla(dtype=torch.uint8, cache_dtype_str="fp8_ds_mla"))  # scales lie in the page, from its bytes


def test_one_rank_has_no_replica() -> None:
    assert not _replicas(_mla(), replicas=1, tensor_parallel_size=1, world_size=1)


@pytest.mark.parametrize(
    ("changes", "replicas"),
    [
        ({"pipeline_parallel_size": 2, "world_size": 8}, 4),
        ({"world_size": 8}, 4),
        ({"prefill_context_parallel_size": 2}, 4),
        ({"decode_context_parallel_size": 2}, 1),
        ({"calculate_kv_scales": True}, 4),
    ],
)
def test_ranks_that_are_split_otherwise_are_no_replicas(changes: dict[str, Any], replicas: int) -> None:
    assert not _replicas(_mla(), replicas=replicas, **changes)


def test_other_pages_are_no_replicas() -> None:
    from vllm.v1.kv_cache_interface import KVQuantMode

    assert not _replicas(_full(), replicas=1)
    assert not _replicas(_full(max_tp_shards=1), replicas=4)  # the same heads, which nobody has promised for ever
    assert not _replicas([_mla(), _full()], replicas=1)
    per_head = next(mode for mode in KVQuantMode if mode.is_per_token_head)
    assert not _replicas(_mla(kv_quant_mode=per_head), replicas=4)


def test_an_engine_that_says_nothing_has_no_replicas() -> None:
    group = SimpleNamespace(kv_cache_spec=_mla(), layer_names=["layer.0"])
    parallel = SimpleNamespace(tensor_parallel_size=4, pipeline_parallel_size=1, world_size=4)
    config = SimpleNamespace(parallel_config=parallel, cache_config=SimpleNamespace())
    assert not identity.ranks_are_replicas(config, SimpleNamespace(kv_cache_groups=[group]))


def test_what_replicas_hold_counts_once() -> None:
    mla, full = _mla(), _full()
    assert identity.engine_cache_bytes(*_engine(mla)) == 10 * mla.page_size_bytes
    assert identity.engine_cache_bytes(*_engine(full)) == 4 * 10 * full.page_size_bytes
