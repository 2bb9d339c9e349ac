#include "flexkv/trace/trace_request.h"

#include "gtest/gtest.h"

namespace flexkv::trace {
namespace {

// Hands out `count` requests of two blocks each, one a batch.
class CountedSource : public TraceSource {
 public:
  explicit CountedSource(uint64_t count) : count_(count) {}
  absl::StatusOr<bool> Next(uint64_t, RequestBatch* batch) override {
    batch->Clear();
    if (next_ == count_) return false;
    batch->requests.push_back({.time_ns = next_, .num_blocks = 2});
    batch->blocks = {next_, next_ + 1000};
    ++next_;
    return true;
  }
  absl::Status Rewind() override {
    next_ = 0;
    return absl::OkStatus();
  }
  const TraceInfo& info() const override { return info_; }
  double progress() const override { return 0; }

 private:
  uint64_t count_, next_ = 0;
  TraceInfo info_;
};

TEST(ReadWholeTraceTest, BlocksStayWithTheirRequests) {
  CountedSource source(5);
  const absl::StatusOr<RequestBatch> whole = ReadWholeTrace(&source, 1 << 20);
  ASSERT_TRUE(whole.ok());
  ASSERT_EQ(whole->requests.size(), 5u);
  for (uint64_t i = 0; i < 5; ++i) {
    EXPECT_EQ(whole->BlocksOf(whole->requests[i])[0], i);
    EXPECT_EQ(whole->BlocksOf(whole->requests[i])[1], i + 1000);
  }
}

TEST(ReadWholeTraceTest, RefusesWhatIsTooLarge) {
  CountedSource source(1000);
  EXPECT_TRUE(absl::IsResourceExhausted(ReadWholeTrace(&source, 1000).status()));
}

}  // namespace
}  // namespace flexkv::trace
