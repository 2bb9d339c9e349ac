#include "flexkv/base/metrics.h"

#include <bit>
#include <cmath>
#include <cstdio>

namespace flexkv {
namespace {

constexpr int kFirstShift = 8;  // log2(kFirstBound)
static_assert(1ull << kFirstShift == Histogram::kFirstBound);

// Bounds are 2^(8 + i/2): even buckets end at powers of two, odd ones at the square root between.
int BucketOf(uint64_t value) {
  if (value <= Histogram::kFirstBound) return 0;
  const int log = std::bit_width(value - 1) - 1;  // value is in (2^log, 2^(log + 1)]
  const int even = 2 * (log - kFirstShift);       // the bucket that ends at 2^log
  const int bucket = value <= Histogram::Bound(even + 1) ? even + 1 : even + 2;
  return bucket < Histogram::kBuckets ? bucket : Histogram::kBuckets - 1;
}

std::string Number(double value) {
  char text[40];
  std::snprintf(text, sizeof(text), "%.9g", value);
  return text;
}

void AppendEscaped(std::string_view value, std::string* out) {
  for (const char c : value) {
    if (c == '\\' || c == '"') out->push_back('\\');
    if (c == '\n') {
      *out += "\\n";
    } else {
      out->push_back(c);
    }
  }
}

}  // namespace

uint64_t Histogram::Bound(int bucket) {
  const uint64_t power = kFirstBound << (bucket / 2);
  if (bucket % 2 == 0) return power;
  return static_cast<uint64_t>(static_cast<double>(power) * 1.4142135623730951);
}

void Histogram::Record(uint64_t value) {
  counts_[static_cast<size_t>(BucketOf(value))].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

Histogram::Snapshot Histogram::snapshot() const {
  Snapshot result;
  for (size_t i = 0; i < counts_.size(); ++i) {
    result.counts[i] = counts_[i].load(std::memory_order_relaxed);
    result.count += result.counts[i];
  }
  result.sum = sum_.load(std::memory_order_relaxed);
  return result;
}

uint64_t Histogram::Snapshot::Quantile(double share) const {
  if (count == 0) return 0;
  const double wanted = std::ceil(share * static_cast<double>(count));
  uint64_t seen = 0;
  for (int i = 0; i < kBuckets; ++i) {
    seen += counts[static_cast<size_t>(i)];
    if (seen > 0 && static_cast<double>(seen) >= wanted) return Bound(i);
  }
  return Bound(kBuckets - 1);
}

void PrometheusText::Header(std::string_view name, std::string_view help, std::string_view type) {
  if (last_name_ == name) return;
  last_name_ = name;
  text_.append("# HELP ").append(name).append(" ").append(help).append("\n# TYPE ");
  text_.append(name).append(" ").append(type).append("\n");
}

void PrometheusText::Sample(std::string_view name, std::string_view suffix, const Labels& labels,
                            std::string_view value) {
  text_.append(name).append(suffix);
  if (!labels.empty()) {
    char separator = '{';
    for (const auto& [key, label] : labels) {
      text_.push_back(separator);
      text_.append(key).append("=\"");
      AppendEscaped(label, &text_);
      text_.push_back('"');
      separator = ',';
    }
    text_.push_back('}');
  }
  text_.append(" ").append(value).append("\n");
}

void PrometheusText::Counter(std::string_view name, std::string_view help, uint64_t value,
                             const Labels& labels) {
  Header(name, help, "counter");
  Sample(name, "", labels, std::to_string(value));
}

void PrometheusText::Gauge(std::string_view name, std::string_view help, double value,
                           const Labels& labels) {
  Header(name, help, "gauge");
  Sample(name, "", labels, Number(value));
}

void PrometheusText::Histo(std::string_view name, std::string_view help,
                           const Histogram::Snapshot& values, double scale, const Labels& labels) {
  Header(name, help, "histogram");
  uint64_t cumulative = 0;
  for (int i = 0; i < Histogram::kBuckets; ++i) {
    cumulative += values.counts[static_cast<size_t>(i)];
    if (i % 4 != 0) continue;  // every second power of two: enough to draw, few enough to store
    Labels with_bound = labels;
    with_bound.emplace_back("le", Number(static_cast<double>(Histogram::Bound(i)) * scale));
    Sample(name, "_bucket", with_bound, std::to_string(cumulative));
  }
  Labels last = labels;
  last.emplace_back("le", "+Inf");
  Sample(name, "_bucket", last, std::to_string(values.count));
  Sample(name, "_sum", labels, Number(static_cast<double>(values.sum) * scale));
  Sample(name, "_count", labels, std::to_string(values.count));
}

}  // namespace flexkv
