#include "flexkv/trace/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace flexkv::trace {

struct WorkerPool::Impl {
  std::mutex mutex;
  std::condition_variable begun, ended;
  std::vector<std::thread> threads;
  const std::function<void(size_t)>* body = nullptr;  // all guarded by `mutex` but `next`
  size_t count = 0;
  uint64_t round = 0;
  size_t working = 0;
  bool stop = false;
  std::atomic<size_t> next{0};

  void Share(const std::function<void(size_t)>& work, size_t end) {
    for (size_t i = next.fetch_add(1); i < end; i = next.fetch_add(1)) work(i);
  }

  void Work() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    while (true) {
      begun.wait(lock, [&] { return stop || round != seen; });
      if (stop) return;
      seen = round;
      const auto* work = body;
      const size_t end = count;
      lock.unlock();
      Share(*work, end);
      lock.lock();
      if (--working == 0) ended.notify_one();
    }
  }
};

WorkerPool::WorkerPool(size_t threads) : impl_(std::make_unique<Impl>()) {
  for (size_t i = 1; i < threads; ++i) impl_->threads.emplace_back([this] { impl_->Work(); });
}

WorkerPool::~WorkerPool() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->begun.notify_all();
  for (std::thread& thread : impl_->threads) thread.join();
}

size_t WorkerPool::threads() const { return impl_->threads.size() + 1; }

void WorkerPool::ForEach(size_t count, const std::function<void(size_t)>& body) {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->body = &body;
    impl_->count = count;
    impl_->next = 0;
    impl_->working = impl_->threads.size();
    ++impl_->round;
  }
  impl_->begun.notify_all();
  impl_->Share(body, count);
  std::unique_lock lock(impl_->mutex);
  impl_->ended.wait(lock, [&] { return impl_->working == 0; });
}

}  // namespace flexkv::trace
