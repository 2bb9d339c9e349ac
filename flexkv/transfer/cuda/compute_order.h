// The engine's compute stream as the copier sees it: marks taken on it, waits put into it.
//
// A mark is an event in a ring. Mark m stands in event m % kMarks; when that has been recorded
// again since, whoever waits for m waits for a later mark: more than asked for, never less, since
// marks of one agent are in one order (a new stream first waits for the old ones). No wait can
// close a circle: a chunk waits for marks taken before it was started, and the compute stream for
// chunks that were started before.
//
// While a stream captures a graph nothing is recorded on it and it waits for nothing: the one would
// become a part of the graph and the other would break the capture.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/cuda/cuda_api.h"
#include "flexkv/transfer/cuda/device_loss.h"

namespace flexkv::cuda {

class ComputeOrder {
 public:
  static constexpr size_t kMarks = 64;

  ComputeOrder(Api* api, DeviceLoss* loss) : api_(api), loss_(loss) {}

  Error CreateEvents();
  void DestroyEvents();

  // Engine threads.
  void SetStream(Stream stream);
  ComputeMark Mark();  // kNoMark: none could be taken
  // Makes the stream wait for what each event stands for now. False: it could not.
  bool Hold(std::span<const Event> events);

  // Any thread. `mark` is one that was taken.
  Event EventOf(ComputeMark mark) const { return marks_[mark % kMarks]; }

 private:
  bool Captures(Stream stream);
  bool JoinEarlier();

  Api* const api_;
  DeviceLoss* const loss_;
  std::array<Event, kMarks> marks_{};
  Event join_ = nullptr;

  std::mutex mutex_;  // engines have one thread that computes; this costs it nothing
  bool has_stream_ = false;
  Stream stream_ = nullptr;
  std::vector<Stream> earlier_;  // the present one does not wait for them yet
  ComputeMark last_ = 0;
};

}  // namespace flexkv::cuda
