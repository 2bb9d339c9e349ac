// A CUDA copier over the fake runtime: engine tensors, an arena and the segments registered of it,
// stepped by the test on one thread.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "flexkv/transfer/cuda/cuda_copier.h"
#include "tests/support/fake_cuda.h"

namespace flexkv::cuda {

struct RigOptions {
  uint32_t layers = 3;
  uint32_t loops = 4;                // fragments of a layer of a block
  uint32_t fragment_bytes = 96;      // with a gap behind each but when there is one
  uint32_t num_blocks = 16;          // in the engine, and as many shards in the arena
  uint64_t piece_bytes = 1024;       // of registration: shards lie across pieces
  uint64_t registered = UINT64_MAX;  // bytes of the arena that can be
  uint64_t staging_bytes = 4096;
  bool kernels_read_host = true;
  CopyOptions copy;
};

class CopierRig {
 public:
  CopierRig(uint64_t seed, const RigOptions& options)
      : cuda({.seed = seed,
              .kernels_read_host = options.kernels_read_host,
              .lockable_bytes = options.registered}),
        options_(options) {
    const uint32_t gap = options.loops > 1 ? 32 : 0;
    const uint64_t layer_bytes = uint64_t{options.loops} * (options.fragment_bytes + gap);
    const uint64_t tensor_bytes = layer_bytes * options.num_blocks;
    engine.resize(tensor_bytes * options.layers);
    layout.groups.push_back({.num_blocks = options.num_blocks, .tokens_per_block = 16});
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      LayerView view{.base = reinterpret_cast<uintptr_t>(engine.data()) + layer * tensor_bytes,
                     .block_stride_bytes = static_cast<int64_t>(layer_bytes),
                     .fragment_bytes = options.fragment_bytes};
      if (options.loops > 1) view.outer.push_back({options.loops, options.fragment_bytes + gap});
      layout.groups[0].layers.push_back(view);
    }
    EXPECT_TRUE(layout.Validate().ok());
    map = std::make_unique<internal::ShardMap>(layout);
    arena.resize(map->shard_bytes * options.num_blocks);
    cuda.AdoptDevice(engine);
    stream = cuda.EngineStream();
    pinned = std::make_unique<PinnedSegments>(
        PinnedSegments::Options{.piece_bytes = options.piece_bytes}, &cuda);
    pinned->Add(1, arena);
    WaitUntilRegistered();
    auto made =
        CudaCopier::Create(options.copy, map.get(), &cuda, pinned.get(), options.staging_bytes);
    EXPECT_TRUE(made.ok()) << made.status();
    copier = *std::move(made);
    copier->EnterThread();
    copier->SetComputeStream(reinterpret_cast<uintptr_t>(stream));
  }

  // Nothing of the device is left behind, and nothing forbidden was done to it.
  void ExpectClean() {
    copier.reset();
    pinned.reset();
    EXPECT_EQ(cuda.open_handles(), 0u);
    EXPECT_EQ(cuda.FirstViolation(), "");
  }

  void WaitUntilRegistered() {
    for (int i = 0; i < 20000; ++i) {
      const PinnedSegments::State state = pinned->state();
      if (state.refused || state.pinned_bytes == state.mapped_bytes) return;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    ADD_FAILURE() << "registration does not end";
  }

  // --- bytes: a function of who wrote them ---
  static std::byte ByteOf(uint64_t content, uint64_t i) {
    return static_cast<std::byte>((content * 131 + i * 7 + (i >> 8)) & 0xff);
  }
  std::byte* shard(uint32_t index) { return arena.data() + index * map->shard_bytes; }
  void FillShard(uint32_t index, uint64_t content) {
    for (uint64_t i = 0; i < map->shard_bytes; ++i) shard(index)[i] = ByteOf(content, i);
  }
  bool ShardIs(uint32_t index, uint64_t content) {
    for (uint64_t i = 0; i < map->shard_bytes; ++i) {
      if (shard(index)[i] != ByteOf(content, i)) return false;
    }
    return true;
  }
  template <typename Visit>
  void ForEachByte(uint32_t block, Visit visit) {
    uint64_t i = 0;
    for (const internal::ShardMap::Layer& layer : map->layers) {
      for (uint32_t loop = 0; loop < options_.loops; ++loop) {
        std::byte* at = reinterpret_cast<std::byte*>(layer.view.base) +
                        block * static_cast<uint64_t>(layer.view.block_stride_bytes);
        if (options_.loops > 1)
          at += loop * static_cast<uint64_t>(layer.view.outer[0].stride_bytes);
        for (uint32_t byte = 0; byte < options_.fragment_bytes; ++byte) visit(at + byte, i++);
      }
    }
  }
  void FillBlock(uint32_t block, uint64_t content) {
    ForEachByte(block, [&](std::byte* at, uint64_t i) { *at = ByteOf(content, i); });
  }
  bool BlockIs(uint32_t block, uint64_t content) {
    bool good = true;
    ForEachByte(block, [&](const std::byte* at, uint64_t i) { good &= *at == ByteOf(content, i); });
    return good;
  }

  // --- chunks ---
  struct Part {
    uint32_t block = 0, shard = 0;
    uint32_t first_layer = 0, end_layer = UINT32_MAX;
  };
  ChunkTicket Start(Route route, const std::vector<Part>& parts, ComputeMark after = 0,
                    Lane lane = Lane::kBackground) {
    std::vector<uint32_t> ids;
    for (const Part& part : parts) ids.push_back(part.block);
    std::vector<ChunkPiece> pieces;
    ChunkJob job{.ticket = ++last_ticket, .op = 1, .route = route, .lane = lane, .after = after};
    for (size_t i = 0; i < parts.size(); ++i) {
      const uint32_t end = std::min<uint32_t>(parts[i].end_layer, options_.layers);
      pieces.push_back({.shard = shard(parts[i].shard),
                        .block_ids = std::span(ids).subspan(i, 1),
                        .first_layer = parts[i].first_layer,
                        .end_layer = end});
      for (uint32_t layer = parts[i].first_layer; layer < end; ++layer) {
        job.bytes += map->layers[layer].bytes;
      }
    }
    job.pieces = pieces;
    copier->Start(job);
    // What the job pointed to is gone.
    std::fill(ids.begin(), ids.end(), UINT32_MAX);
    for (ChunkPiece& piece : pieces) piece.shard = nullptr;
    return job.ticket;
  }
  void Collect() {
    std::vector<ChunkEnd> found;
    copier->Collect(&found);
    for (const ChunkEnd& end : found) {
      EXPECT_TRUE(ends.emplace(end.ticket, end).second) << "ended twice";
    }
  }
  bool Ended(ChunkTicket ticket) const { return ends.contains(ticket); }
  bool EndedWell(ChunkTicket ticket) const { return Ended(ticket) && ends.at(ticket).ok; }
  // Until all that was started has ended.
  void Drain() {
    for (int i = 0; i < 20000 && ends.size() < last_ticket; ++i) {
      for (int step = 0; step < 8 && cuda.Step(); ++step) {
      }
      Collect();
    }
    EXPECT_EQ(ends.size(), last_ticket) << "chunks that never end";
  }

  FakeCuda cuda;
  KvLayout layout;
  std::vector<std::byte> engine, arena;
  std::unique_ptr<internal::ShardMap> map;
  Stream stream = nullptr;
  std::unique_ptr<PinnedSegments> pinned;
  std::unique_ptr<CudaCopier> copier;
  std::atomic<ChunkTicket> last_ticket{0};
  std::map<ChunkTicket, ChunkEnd> ends;

 private:
  const RigOptions options_;
};

}  // namespace flexkv::cuda
