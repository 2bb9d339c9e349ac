// Histograms that any thread may record into without a lock, and the Prometheus text format.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flexkv {

// Counts values in buckets whose bounds grow by sqrt(2): a quantile is at most 20 % off. Values are
// plain integers (nanoseconds, bytes); the last bucket holds all that is larger.
class Histogram {
 public:
  static constexpr int kBuckets = 80;
  // Upper bound of bucket 0; the largest bound is about 1.1e12 times that.
  static constexpr uint64_t kFirstBound = 256;

  struct Snapshot {
    std::array<uint64_t, kBuckets> counts{};
    uint64_t count = 0;
    uint64_t sum = 0;
    // Value below which `share` (0..1) of what was recorded lies; 0 when nothing was.
    uint64_t Quantile(double share) const;
  };

  void Record(uint64_t value);
  Snapshot snapshot() const;
  // Upper bound of a bucket, inclusive.
  static uint64_t Bound(int bucket);

 private:
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
  std::atomic<uint64_t> sum_{0};
};

// Builds a page in the Prometheus text format (version 0.0.4). A name's HELP and TYPE lines are
// written once, before its first sample; samples of one name must follow each other.
class PrometheusText {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  void Counter(std::string_view name, std::string_view help, uint64_t value,
               const Labels& labels = {});
  void Gauge(std::string_view name, std::string_view help, double value, const Labels& labels = {});
  // `scale` turns recorded values into the unit of the name (1e-9: ns to seconds).
  void Histo(std::string_view name, std::string_view help, const Histogram::Snapshot& values,
             double scale, const Labels& labels = {});
  const std::string& text() const { return text_; }

 private:
  void Header(std::string_view name, std::string_view help, std::string_view type);
  void Sample(std::string_view name, std::string_view suffix, const Labels& labels,
              std::string_view value);

  std::string text_;
  std::string last_name_;
};

}  // namespace flexkv
