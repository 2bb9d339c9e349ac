// Registers arena segments with the device, piece by piece, on a thread of its own: a terabyte
// takes minutes, and what is registered already is used meanwhile. Copies to and from the rest go
// through staging buffers (cuda_copier.h): slower, never wrong.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "flexkv/base/ids.h"
#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {

class PinnedSegments {
 public:
  struct Options {
    uint64_t piece_bytes = 64ull << 20;  // one registration; a multiple of 2 MiB
  };
  PinnedSegments(const Options& options, Api* api);
  ~PinnedSegments();  // gives everything back

  void Add(SegmentId segment, std::span<std::byte> memory);
  // Waits for the piece being registered, then gives back all of the segment.
  void Remove(SegmentId segment);
  // Whether all of [address, address + bytes) may be copied asynchronously. Any thread, no lock
  // held for long. Stays true until Remove.
  bool Holds(const std::byte* address, uint64_t bytes) const;
  // An address in a segment that copies are waiting for: its piece is registered next.
  void Prefer(const std::byte* address);

  struct State {
    uint64_t mapped_bytes = 0, pinned_bytes = 0;
    bool refused = false;  // the system refuses more; tried again when a segment comes or goes
    std::string problem;   // what to do then
  };
  State state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv::cuda
