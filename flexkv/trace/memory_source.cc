#include "flexkv/trace/memory_source.h"

#include <algorithm>
#include <utility>

namespace flexkv::trace {
namespace {

class MemorySource final : public TraceSource {
 public:
  explicit MemorySource(RequestBatch batch) : whole_(std::move(batch)) {
    info_.namespaces = {""};
    if (!whole_.requests.empty()) info_.tokens_per_block = whole_.requests[0].tokens_per_block;
  }

  absl::StatusOr<bool> Next(uint64_t max_blocks, RequestBatch* batch) override {
    batch->Clear();
    while (next_ < whole_.requests.size()) {
      const TraceRequest& request = whole_.requests[next_];
      if (!batch->requests.empty() && batch->blocks.size() + request.num_blocks > max_blocks) break;
      const std::span<const uint64_t> ids = whole_.BlocksOf(request);
      batch->requests.push_back(request);
      batch->requests.back().first_block = batch->blocks.size();
      batch->blocks.insert(batch->blocks.end(), ids.begin(), ids.end());
      ++next_;
      if (batch->requests.size() >= std::max<uint64_t>(1, max_blocks)) break;
    }
    info_.lines = std::max<uint64_t>(info_.lines, next_);
    return !batch->requests.empty();
  }

  absl::Status Rewind() override {
    next_ = 0;
    return absl::OkStatus();
  }
  const TraceInfo& info() const override { return info_; }
  double progress() const override {
    const size_t all = whole_.requests.size();
    return all == 0 ? 1 : static_cast<double>(next_) / static_cast<double>(all);
  }

 private:
  RequestBatch whole_;
  size_t next_ = 0;
  TraceInfo info_;
};

}  // namespace

std::unique_ptr<TraceSource> MakeMemorySource(RequestBatch batch) {
  return std::make_unique<MemorySource>(std::move(batch));
}

}  // namespace flexkv::trace
