// The chunk copier of a GPU: streams, events, batches; above cuda::Api, without CUDA's headers.
//
// Streams: copy engine down, up (above down) and for layers (as up); a kernel stream beside each,
// at the lowest priority unless CopyOptions::above_compute. Chunks are independent: what must be
// ordered is ordered by marks and HoldCompute. A chunk waits for its mark's event, is cut into
// copies (adjoining fragments merged, copy_plan.h), at most batch_copies to a call, and ends when
// the events behind its last calls are done.
//
// Everything that copying needs of the device (streams, events, lists for kernels, staging buffers)
// is made once; a chunk that finds none of it left waits inside the copier and is started by
// Collect. HoldCompute answers false for such a chunk, and while the engine captures a graph.
//
// Shards in memory not registered yet go through staging buffers: loads are copied there by the
// starting thread, stores from there when the device is done with them (before the end is told).
//
// An error of one call fails the chunk; what may have been accepted before it is waited for. A
// sticky error fails everything from then on, and nothing is asked of the device any more.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/cuda/cuda_api.h"
#include "flexkv/transfer/cuda/pinned_segments.h"

namespace flexkv::cuda {

class CudaCopier : public ChunkCopier {
 public:
  // Creates streams and events on the calling thread (before the engine captures graphs). `map`,
  // `api` and `pinned` outlive the copier. `staging_bytes`: of one staging buffer, best as much as
  // a chunk; larger chunks go through it in several rounds. Internal: the device refuses.
  //
  // The compute stream's number 0 is the legacy default stream, on which torch computes unless told
  // otherwise. Before the first SetComputeStream there are no marks: chunks fail.
  static absl::StatusOr<std::unique_ptr<CudaCopier>> Create(const CopyOptions& options,
                                                            const internal::ShardMap* map, Api* api,
                                                            PinnedSegments* pinned,
                                                            uint64_t staging_bytes = 4ull << 20);
  // From now on; any thread.
  virtual void SetOptions(const CopyOptions& options) = 0;
  virtual void SetKernelBelow(Route route, uint32_t fragment_bytes) = 0;

  struct Stats {
    uint64_t copies = 0, batches = 0, kernels = 0, staged_bytes = 0, failed_chunks = 0;
    bool lost = false;  // sticky error
  };
  virtual Stats stats() const = 0;
};

}  // namespace flexkv::cuda
