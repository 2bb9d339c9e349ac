#include "flexkv/transfer/cuda/copy_curve_file.h"

#include <charconv>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace flexkv::cuda {
namespace {

constexpr float kMaxRate = 1e6f;  // GB/s
constexpr uint32_t kMaxSms = 1u << 16;

bool Plain(char c) { return c >= 0x20 && c <= 0x7e && c != '"' && c != '\\'; }

// Reads from the front; the first thing that is not as expected makes all that follows fail.
class Reader {
 public:
  explicit Reader(std::string_view text) : rest_(text) {}

  bool ok() const { return ok_; }
  bool AtEnd() {
    SkipSpace();
    return ok_ && rest_.empty();
  }
  bool Peek(char c) {
    SkipSpace();
    return ok_ && !rest_.empty() && rest_.front() == c;
  }
  void Expect(char c) {
    if (Peek(c)) {
      rest_.remove_prefix(1);
    } else {
      ok_ = false;
    }
  }
  void ExpectKey(std::string_view key) {
    std::string name;
    String(&name);
    if (name != key) ok_ = false;
    Expect(':');
  }
  void String(std::string* target) {
    Expect('"');
    size_t length = 0;
    while (ok_ && length < rest_.size() && Plain(rest_[length])) ++length;
    if (!ok_ || length == rest_.size() || rest_[length] != '"') {
      ok_ = false;
      return;
    }
    target->assign(rest_.substr(0, length));
    rest_.remove_prefix(length + 1);
  }
  template <typename T>
  void Number(T least, T most, T* target) {
    SkipSpace();
    if (!ok_) return;
    const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), *target);
    // Also refuses what is no number: neither comparison holds for it.
    if (error != std::errc() || !(*target >= least && *target <= most)) {
      ok_ = false;
      return;
    }
    rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
  }
  // Calls `item` for each, at most `most` times.
  template <typename Item>
  void List(size_t most, const Item& item) {
    Expect('[');
    if (Peek(']')) {
      Expect(']');
      return;
    }
    for (size_t i = 0; ok_; ++i) {
      if (i == most) ok_ = false;
      if (ok_) item();
      if (!Peek(',')) break;
      Expect(',');
    }
    Expect(']');
  }
  void Fail() { ok_ = false; }

 private:
  void SkipSpace() {
    const size_t length = rest_.find_first_not_of(" \t\r\n");
    rest_.remove_prefix(length == std::string_view::npos ? rest_.size() : length);
  }

  std::string_view rest_;
  bool ok_ = true;
};

void ReadPoint(Reader* reader, std::vector<DeviceReport::Point>* points) {
  DeviceReport::Point point;
  const uint32_t last = points->empty() ? 0 : points->back().fragment_bytes;
  reader->Expect('[');
  reader->Number<uint32_t>(1, UINT32_MAX, &point.fragment_bytes);
  for (float* rate :
       {&point.copy_engine[0], &point.copy_engine[1], &point.kernel[0], &point.kernel[1]}) {
    reader->Expect(',');
    reader->Number(0.0f, kMaxRate, rate);
  }
  reader->Expect(']');
  if (point.fragment_bytes <= last) reader->Fail();
  points->push_back(point);
}

CurveEntry ReadEntry(Reader* reader) {
  CurveEntry entry;
  reader->Expect('{');
  reader->ExpectKey("device");
  reader->String(&entry.device);
  if (entry.device.size() >= sizeof(DeviceInfo::name)) reader->Fail();
  reader->Expect(',');
  reader->ExpectKey("driver");
  reader->Number<int32_t>(0, INT32_MAX, &entry.driver_version);
  reader->Expect(',');
  reader->ExpectKey("kernel_sms");
  reader->Expect('[');
  reader->Number<uint32_t>(0, kMaxSms, &entry.curve.kernel_sms[0]);
  reader->Expect(',');
  reader->Number<uint32_t>(0, kMaxSms, &entry.curve.kernel_sms[1]);
  reader->Expect(']');
  reader->Expect(',');
  reader->ExpectKey("points");
  reader->List(kMaxCurvePoints, [&] { ReadPoint(reader, &entry.curve.points); });
  reader->Expect('}');
  return entry;
}

void AppendEntry(const CurveEntry& entry, std::string* text) {
  absl::StrAppend(text, "{\"device\": \"", entry.device, "\", \"driver\": ", entry.driver_version,
                  ", \"kernel_sms\": [", entry.curve.kernel_sms[0], ", ", entry.curve.kernel_sms[1],
                  "], \"points\": [");
  const char* separator = "";
  for (const DeviceReport::Point& point : entry.curve.points) {
    absl::StrAppend(text, separator, "[", point.fragment_bytes);
    for (const float rate :
         {point.copy_engine[0], point.copy_engine[1], point.kernel[0], point.kernel[1]}) {
      absl::StrAppend(text, ", ", rate);
    }
    absl::StrAppend(text, "]");
    separator = ", ";
  }
  absl::StrAppend(text, "]}");
}

}  // namespace

absl::StatusOr<std::vector<CurveEntry>> ParseCurves(std::string_view text) {
  std::vector<CurveEntry> entries;
  if (text.size() > kMaxCurveFileBytes) return absl::DataLossError("too long for copy curves");
  Reader reader(text);
  int version = 0;
  reader.Expect('{');
  reader.ExpectKey("flexkv_copy_curves");
  reader.Number(1, 1, &version);
  reader.Expect(',');
  reader.ExpectKey("curves");
  reader.List(kMaxCurveEntries, [&] { entries.push_back(ReadEntry(&reader)); });
  reader.Expect('}');
  if (!reader.AtEnd()) return absl::DataLossError("not a file of copy curves");
  return entries;
}

std::string FormatCurves(const std::vector<CurveEntry>& entries) {
  std::string text = "{\"flexkv_copy_curves\": 1, \"curves\": [";
  const char* separator = "\n";
  for (const CurveEntry& entry : entries) {
    absl::StrAppend(&text, separator);
    AppendEntry(entry, &text);
    separator = ",\n";
  }
  absl::StrAppend(&text, "]}\n");
  return text;
}

std::string CurveDeviceName(const DeviceInfo& device) {
  std::string name(device.name, strnlen(device.name, sizeof(device.name) - 1));
  for (char& c : name) {
    if (!Plain(c)) c = '_';
  }
  return name;
}

}  // namespace flexkv::cuda
