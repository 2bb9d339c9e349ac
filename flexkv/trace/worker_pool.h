// Threads that share the iterations of a loop with the calling one.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace flexkv::trace {

class WorkerPool {
 public:
  explicit WorkerPool(size_t threads);  // the calling one included; at least 1
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // body(0) .. body(count - 1), each once, in no order; returns when all are done.
  void ForEach(size_t count, const std::function<void(size_t)>& body);
  size_t threads() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv::trace
