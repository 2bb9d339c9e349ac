// Whether the device's context is lost (or the process is ending): from then on no call of the
// device is made any more. Shared by the parts of one copier; any thread.
#pragma once

#include <atomic>

#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {

class DeviceLoss {
 public:
  // Hands `error` back, having noted what it means.
  Error Note(Error error) {
    if (error == Error::kSticky || error == Error::kUnloading) Declare();
    return error;
  }
  void Declare() { lost_.store(true, std::memory_order_relaxed); }
  bool lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> lost_{false};
};

}  // namespace flexkv::cuda
