// Registers arena segments with the device, piece by piece, on a thread of its own: a terabyte
// takes minutes, and what is registered already is used meanwhile. Copies to and from the rest go
// through staging buffers (cuda_copier.h): slower, never wrong.
//
// Memory that the device calls registered already, by somebody else, is never taken for ours: an
// old mapping may have lain there, and the device would still copy to its pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

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
  // Bytes from `address` to the end of the registration that holds it; 0: none does. One copy must
  // not reach over that end, even where the next piece is registered too: to the device these are
  // two memories.
  uint64_t HeldBytes(const std::byte* address) const;
  // An address in a segment that copies are waiting for: its piece is registered next.
  void Prefer(const std::byte* address);
  // The device is lost: nothing is registered any more, nor given back.
  void Abandon();

  struct State {
    uint64_t mapped_bytes = 0, pinned_bytes = 0;
    bool refused = false;  // the system refuses more; tried again when a segment comes or goes
    std::string problem;   // one sentence: what to do then; "" when all is well
  };
  State state() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv::cuda
