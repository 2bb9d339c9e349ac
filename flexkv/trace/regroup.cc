#include "flexkv/trace/regroup.h"

namespace flexkv::trace {
namespace {

class RegroupedSource : public TraceSource {
 public:
  RegroupedSource(TraceSource* inner, uint32_t factor) : inner_(inner), factor_(factor) {
    Update();
  }

  absl::StatusOr<bool> Next(uint64_t max_blocks, RequestBatch* batch) override {
    absl::StatusOr<bool> more = inner_->Next(max_blocks, batch);
    Update();
    if (!more.ok() || !*more) return more;
    uint64_t to = 0;
    for (TraceRequest& request : batch->requests) {
      const uint64_t from = request.first_block;
      const uint32_t groups = request.num_blocks / factor_;
      request.first_block = to;
      request.num_blocks = groups;
      request.tokens_per_block *= factor_;
      for (uint32_t i = 0; i < groups; ++i) {
        batch->blocks[to++] = batch->blocks[from + uint64_t{i + 1} * factor_ - 1];
      }
    }
    batch->blocks.resize(to);
    return more;
  }
  absl::Status Rewind() override { return inner_->Rewind(); }
  const TraceInfo& info() const override { return info_; }
  double progress() const override { return inner_->progress(); }

 private:
  void Update() {
    info_ = inner_->info();
    info_.tokens_per_block *= factor_;
  }
  TraceSource* inner_;
  const uint32_t factor_;
  TraceInfo info_;
};

}  // namespace

std::unique_ptr<TraceSource> MakeRegroupedSource(TraceSource* inner, uint32_t factor) {
  return std::make_unique<RegroupedSource>(inner, factor);
}

}  // namespace flexkv::trace
