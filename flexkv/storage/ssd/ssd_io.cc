#include "flexkv/storage/ssd/ssd_io.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv::ssd {
namespace {

constexpr uint64_t kSequentialPages = 256;
constexpr TimeNs kWaitStep = 100 * kNsPerMs;  // a bound per wait, not for all of it

struct Waiter final : TransferSink {
  void OnTransfer(uint64_t, bool all_moved, int64_t what) override {
    done = true;
    ok = all_moved;
    result = what;
  }
  bool done = false, ok = false;
  int64_t result = 0;
};

}  // namespace

void PageBuffer::Free::operator()(std::byte* memory) const {
  operator delete[](memory, std::align_val_t{kPageBytes});
}

PageBuffer::PageBuffer(size_t pages)
    : memory_(new (std::align_val_t{kPageBytes}) std::byte[pages * kPageBytes]()), pages_(pages) {}

std::byte* PageBuffer::page(size_t index) const { return memory_.get() + index * kPageBytes; }

std::span<std::byte> PageBuffer::span(size_t first, size_t count) const {
  return {page(first), count * kPageBytes};
}

bool IoDriver::Start(IoKind kind, FileId file, uint64_t offset, std::span<const iovec> slices,
                     TransferSink* sink, uint64_t cookie) {
  if (unused_.empty()) {
    unused_.push_back(static_cast<uint32_t>(transfers_.size()));
    transfers_.emplace_back();
  }
  const uint32_t index = unused_.back();
  Transfer& transfer = transfers_[index];
  uint64_t bytes = 0;
  for (const iovec& slice : slices) bytes += slice.iov_len;
  const uint64_t tag = uint64_t{transfer.generation} << 32 | index;
  if (!disk_->Submit({tag, kind, file, offset, slices})) return false;
  unused_.pop_back();
  transfer.sink = sink;
  transfer.cookie = cookie;
  transfer.bytes = bytes;
  ++in_flight_;
  in_flight_bytes_ += bytes;
  return true;
}

void IoDriver::Poll(TimeNs timeout_ns) {
  results_.clear();
  disk_->Poll(timeout_ns, &results_);
  for (const IoResult& result : results_) {
    const auto index = static_cast<uint32_t>(result.tag);
    if (index >= transfers_.size()) continue;
    Transfer& transfer = transfers_[index];
    // A result that nobody waits for (any more) must not end another transfer.
    if (transfer.sink == nullptr || transfer.generation != result.tag >> 32) continue;
    const Transfer ended = transfer;
    transfer.sink = nullptr;
    ++transfer.generation;
    unused_.push_back(index);
    --in_flight_;
    in_flight_bytes_ -= ended.bytes;
    const bool ok = result.result >= 0 && static_cast<uint64_t>(result.result) == ended.bytes;
    ended.sink->OnTransfer(ended.cookie, ok, result.result);
  }
}

bool IoDriver::RunAndWait(IoKind kind, FileId file, uint64_t offset,
                          std::span<const iovec> slices) {
  Waiter waiter;
  while (!Start(kind, file, offset, slices, &waiter, 0)) Poll(kWaitStep);
  while (!waiter.done) Poll(kWaitStep);
  if (!waiter.ok) last_error_ = std::min<int64_t>(waiter.result, 0);
  return waiter.ok;
}

bool IoDriver::Read(FileId file, uint64_t offset, std::span<std::byte> memory) {
  const iovec slice{memory.data(), memory.size()};
  return RunAndWait(IoKind::kRead, file, offset, {&slice, 1});
}

bool IoDriver::Write(FileId file, uint64_t offset, std::span<const std::byte> memory) {
  const iovec slice{const_cast<std::byte*>(memory.data()), memory.size()};
  return RunAndWait(IoKind::kWrite, file, offset, {&slice, 1});
}

bool IoDriver::Sync(FileId file) { return RunAndWait(IoKind::kSync, file, 0, {}); }

PieceReader::PieceReader(IoDriver* io, const Plan& plan)
    : io_(io),
      plan_(plan),
      buffer_(std::min<uint64_t>(plan.ahead, plan.count) * plan.pages),
      states_(std::min<uint64_t>(plan.ahead, plan.count), State::kIdle) {}

PieceReader::~PieceReader() {
  const auto reading = [](State state) { return state == State::kReading; };
  while (std::any_of(states_.begin(), states_.end(), reading)) io_->Poll(kWaitStep);
}

uint64_t PieceReader::BytesOf(uint64_t piece) const {
  const uint64_t offset = plan_.offset + piece * plan_.stride;
  const uint64_t end = plan_.end / kPageBytes * kPageBytes;  // a cut file's odd bytes hold no page
  return offset >= end ? 0 : std::min(plan_.pages * kPageBytes, end - offset);
}

std::span<std::byte> PieceReader::MemoryOf(uint64_t piece) const {
  return buffer_.span(piece % states_.size() * plan_.pages, plan_.pages).first(BytesOf(piece));
}

void PieceReader::OnTransfer(uint64_t cookie, bool ok, int64_t) {
  states_[cookie % states_.size()] = ok ? State::kRead : State::kFailed;
}

void PieceReader::StartMore() {
  for (; started_ < plan_.count && started_ < next_ + states_.size(); ++started_) {
    State& state = states_[started_ % states_.size()];
    const std::span<std::byte> memory = MemoryOf(started_);
    if (memory.empty()) {
      state = State::kRead;
      continue;
    }
    const iovec slice{memory.data(), memory.size()};
    const uint64_t offset = plan_.offset + started_ * plan_.stride;
    if (!io_->Start(IoKind::kRead, plan_.file, offset, {&slice, 1}, this, started_)) return;
    state = State::kReading;
  }
}

std::span<const std::byte> PieceReader::Next() {
  if (next_ > 0) states_[(next_ - 1) % states_.size()] = State::kIdle;
  if (next_ >= plan_.count) return {};
  StartMore();
  const State& state = states_[next_ % states_.size()];
  while (state == State::kIdle || state == State::kReading) {
    io_->Poll(kWaitStep);
    StartMore();
  }
  if (state == State::kFailed) ReadPageByPage(next_);
  return MemoryOf(next_++);
}

void PieceReader::ReadPageByPage(uint64_t piece) {
  const std::span<std::byte> memory = MemoryOf(piece);
  const uint64_t offset = plan_.offset + piece * plan_.stride;
  for (uint64_t at = 0; at < memory.size(); at += kPageBytes) {
    const std::span<std::byte> page = memory.subspan(at, kPageBytes);
    if (io_->Read(plan_.file, offset + at, page)) continue;
    ++failed_pages_;
    std::memset(page.data(), 0, page.size());
  }
}

PieceReader::Plan SequentialPlan(FileId file, uint64_t begin, uint64_t end) {
  PieceReader::Plan plan{.file = file, .offset = begin, .end = end};
  if (end <= begin) return plan;
  plan.pages = std::min(kSequentialPages, (end - begin + kPageBytes - 1) / kPageBytes);
  plan.stride = plan.pages * kPageBytes;
  plan.count = (end - begin + plan.stride - 1) / plan.stride;
  return plan;
}

}  // namespace flexkv::ssd
