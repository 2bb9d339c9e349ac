// What other threads ask of the control thread: closures in a queue, and the doorbell that wakes
// it.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "proto/shm_ring.h"

namespace flexkv {

class Mailbox {
 public:
  using Task = std::function<void()>;

  // `doorbell` outlives the mailbox.
  explicit Mailbox(shm::Bell* doorbell) : doorbell_(doorbell) {}

  // Any thread. False once closed: the task is dropped.
  bool Post(Task task) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return false;
      tasks_.push_back(std::move(task));
      waiting_.store(true, std::memory_order_release);
    }
    shm::RingBell(doorbell_);
    return true;
  }

  // Any thread but the control thread: runs `function` there and waits for its value, at most
  // `timeout`. nullopt: the control thread did not come to it in time, or has stopped.
  template <typename T>
  std::optional<T> Call(std::chrono::milliseconds timeout, std::function<T()> function) {
    // Shared, since the task may run after the caller gave up.
    auto promise = std::make_shared<std::promise<T>>();
    std::future<T> future = promise->get_future();
    if (!Post([promise, function = std::move(function)] { promise->set_value(function()); }))
      return std::nullopt;
    if (future.wait_for(timeout) != std::future_status::ready) return std::nullopt;
    try {
      return future.get();
    } catch (const std::future_error&) {  // the mailbox was closed with the task in it
      return std::nullopt;
    }
  }

  // Control thread.
  bool Waiting() const { return waiting_.load(std::memory_order_acquire); }
  bool RunAll() {
    if (!Waiting()) return false;
    std::vector<Task> tasks;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks.swap(tasks_);
      waiting_.store(false, std::memory_order_release);
    }
    for (Task& task : tasks) task();
    return true;
  }

  // Drops what waits and refuses more.
  void Close() {
    std::vector<Task> dropped;
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    dropped.swap(tasks_);
  }

 private:
  shm::Bell* doorbell_;
  std::atomic<bool> waiting_{false};
  std::mutex mutex_;         // several threads post; held for a push or a swap only
  std::vector<Task> tasks_;  // guarded by mutex_
  bool closed_ = false;      // guarded by mutex_
};

}  // namespace flexkv
