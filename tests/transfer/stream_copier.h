// A device for stress tests: chunks are copied at random later times, piece by piece, on a thread
// of its own, and beside them runs the engine's compute stream, in order, also late. Targets of
// loads are scribbled on before they are copied to; now and then a chunk fails, Start is slow, or a
// hold is refused. What is ordered by nothing but luck shows in the content.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/host_copier.h"
#include "tests/support/test_seed.h"

namespace flexkv {

class StreamCopier : public ChunkCopier {
 public:
  StreamCopier(const KvLayout& layout, uint64_t seed)
      : host_(layout),
        scribble_(layout.shard_bytes(), std::byte{0xEE}),
        rng_(seed),
        start_rng_(seed + 1),
        thread_([this] { Run(); }) {}
  ~StreamCopier() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  // Engine thread: work on the compute stream.
  void Enqueue(std::function<void()> work) {
    std::lock_guard<std::mutex> lock(mutex_);
    stream_.push_back({.work = std::move(work)});
    ++enqueued_;
    changed_.notify_all();
  }
  // Until all of the compute stream is done.
  void Synchronize() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return done_ == enqueued_; });
  }

  void EnterThread() override {}
  uint64_t MaxBytesInFlight(Route /*route*/) const override { return 4000; }
  void Start(const ChunkJob& job) override {
    std::unique_lock<std::mutex> lock(mutex_);
    const uint64_t pause = start_rng_.OneIn(4) ? start_rng_.Below(200) : 0;
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(pause));
    lock.lock();
    Copy& copy = copies_.emplace_back();
    copy.job = job;
    for (const ChunkPiece& piece : job.pieces) {
      copy.ids.emplace_back(piece.block_ids.begin(), piece.block_ids.end());
      copy.pieces.push_back(piece);
      copy.pieces.back().block_ids = copy.ids.back();
    }
    changed_.notify_all();
  }
  void Collect(std::vector<ChunkEnd>* ends) override {
    std::lock_guard<std::mutex> lock(mutex_);
    ends->insert(ends->end(), ends_.begin(), ends_.end());
    ends_.clear();
  }
  TimeNs CollectAfter() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return ends_.empty() ? 50 * kNsPerUs : 0;
  }
  void SetComputeStream(uint64_t /*stream*/) override {}
  ComputeMark Mark() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return enqueued_;
  }
  bool HoldCompute(std::span<const ChunkTicket> tickets) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (start_rng_.OneIn(8)) return false;
    stream_.push_back({.holds = {tickets.begin(), tickets.end()}});
    ++enqueued_;
    changed_.notify_all();
    return true;
  }

 private:
  struct Item {
    std::function<void()> work;
    std::vector<ChunkTicket> holds;
  };
  struct Copy {
    ChunkJob job;
    std::list<std::vector<uint32_t>> ids;  // never move
    std::vector<ChunkPiece> pieces;
    size_t next = 0;
    bool scribbled = false;
  };

  bool HeadMayRun() const {
    return !stream_.empty() && std::ranges::none_of(copies_, [this](const Copy& copy) {
      return std::ranges::find(stream_.front().holds, copy.job.ticket) !=
             stream_.front().holds.end();
    });
  }

  void Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
      std::vector<std::list<Copy>::iterator> ready;
      for (auto it = copies_.begin(); it != copies_.end(); ++it) {
        if (it->job.after <= done_) ready.push_back(it);
      }
      const bool head = HeadMayRun();
      if (!head && ready.empty()) {
        changed_.wait(lock);
        continue;
      }
      const uint64_t choice = rng_.Below(ready.size() + (head ? 1 : 0));
      const uint64_t pause = rng_.OneIn(4) ? rng_.Below(100) : 0;
      if (choice == ready.size()) {
        RunHead(pause, lock);
      } else {
        RunCopy(ready[choice], pause, lock);
      }
    }
  }

  void RunHead(uint64_t pause, std::unique_lock<std::mutex>& lock) {
    const Item item = std::move(stream_.front());
    stream_.pop_front();
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(pause));
    if (item.work != nullptr) item.work();
    lock.lock();
    ++done_;
    changed_.notify_all();
  }

  // Scribbles, or copies one piece, or ends.
  void RunCopy(std::list<Copy>::iterator it, uint64_t pause, std::unique_lock<std::mutex>& lock) {
    Copy& copy = *it;
    const bool fails = rng_.OneIn(100);
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(pause));
    if (copy.job.route == Route::kCpuToDevice && !copy.scribbled) {
      std::vector<ChunkPiece> garbage = copy.pieces;
      for (ChunkPiece& piece : garbage) piece.shard = scribble_.data();
      copy.scribbled = true;
      Move(copy.job, garbage);
    } else if (copy.next < copy.pieces.size() && !fails) {
      Move(copy.job, std::span(copy.pieces).subspan(copy.next++, 1));
    }
    lock.lock();
    if (!fails && copy.next < copy.pieces.size()) return;
    ends_.push_back({.ticket = copy.job.ticket, .ok = !fails, .copy_ns = 1});
    copies_.erase(it);
    changed_.notify_all();
  }

  void Move(ChunkJob job, std::span<const ChunkPiece> pieces) {
    job.pieces = pieces;
    host_.Start(job);
    std::vector<ChunkEnd> ends;
    host_.Collect(&ends);
  }

  internal::HostCopier host_;
  std::vector<std::byte> scribble_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  TestRng rng_;        // the thread's
  TestRng start_rng_;  // the callers'
  std::deque<Item> stream_;
  uint64_t enqueued_ = 0, done_ = 0;
  std::list<Copy> copies_;
  std::vector<ChunkEnd> ends_;
  bool stop_ = false;
  std::thread thread_;  // last
};

struct StreamDevice : internal::AgentDevice {
  StreamDevice(const KvLayout& layout, uint64_t seed) : stream(layout, seed) {}
  ChunkCopier* copier() override { return &stream; }
  DeviceReport Report() const override { return {.device = "stream"}; }
  StreamCopier stream;
};

}  // namespace flexkv
