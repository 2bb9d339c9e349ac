// What is measured, per fragment size, direction and route: fragments that lie in one piece on the
// host's side and strided on the device's, as a block of a layer-first layout does. One batch warms
// up (the first copy of a kind loads code and wakes engines), then the better of two timed runs
// counts: on an idle device whatever disturbs a run makes it slower.
#include "flexkv/transfer/cuda/copy_route.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/transfer/cuda/copy_curve_file.h"

namespace flexkv::cuda {
namespace {

constexpr float kWorthIt = 1.05f;  // a kernel takes SMs from the model: not for less
constexpr std::array<uint32_t, 8> kFragments = {4u << 10,  8u << 10,   16u << 10,  28u << 10,
                                                64u << 10, 128u << 10, 256u << 10, 1u << 20};
constexpr size_t kMemoryBytes = 16u << 20;
constexpr size_t kRunBytes = 7u << 20;     // of a timed run; two of them and the warm-up: 16 MiB
constexpr size_t kWarmUpBytes = 2u << 20;  // at most
constexpr size_t kBatch = 256;             // copies in one call
constexpr size_t kLayers = 4;              // the device's side: as many places far apart
constexpr size_t kMaxCopies = kRunBytes / kFragments[0];

// Device memory, host memory, a stream and two events, given back at the end whatever happened.
class Bench {
 public:
  explicit Bench(Api* api) : api_(api) {}
  ~Bench();
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  absl::Status Open(const uint32_t kernel_sms[2]);
  absl::Status Measure(DeviceReport::Point* point);

 private:
  // GB/s.
  absl::StatusOr<float> Rate(uint32_t fragment_bytes, Route route, bool kernel);
  absl::Status Submit(size_t count, Route route, bool kernel);
  absl::StatusOr<int64_t> TimedRun(size_t count, Route route, bool kernel);
  size_t Lay(uint32_t fragment_bytes, Route route);
  absl::Status Check(Error error, const char* what);
  absl::Status Idle();

  Api* api_;
  uint32_t kernel_sms_[2] = {};
  bool kernels_ = false;  // the device can read the lists of the kernel
  bool lost_ = false;     // no call works any more
  bool idle_ = true;      // nothing that was given to the stream can still run
  Stream stream_ = nullptr;
  Event start_ = nullptr, end_ = nullptr;
  void* device_ = nullptr;
  void* host_ = nullptr;
  CopyItem* items_ = nullptr;  // written only while idle_
  std::vector<void*> targets_;
  std::vector<const void*> sources_;
  std::vector<size_t> sizes_;
};

absl::Status Bench::Check(Error error, const char* what) {
  if (Ok(error)) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", api_->LastMessage());
  if (error == Error::kSticky || error == Error::kUnloading) lost_ = true;
  return error == Error::kNoMemory ? absl::ResourceExhaustedError(message)
                                   : absl::InternalError(message);
}

// After an error some copies may have been accepted: memory is not given back under them.
absl::Status Bench::Idle() {
  absl::Status status = Check(api_->SynchronizeStream(stream_), "waiting for copies");
  if (status.ok()) idle_ = true;
  return status;
}

Bench::~Bench() {
  for (int i = 0; i < 2 && !idle_ && !lost_; ++i) Idle().IgnoreError();
  if (lost_ || !idle_) return;  // what the driver holds goes with the context
  if (items_ != nullptr) api_->FreeHost(items_);
  if (host_ != nullptr) api_->FreeHost(host_);
  if (device_ != nullptr) api_->FreeDevice(device_);
  if (end_ != nullptr) api_->DestroyEvent(end_);
  if (start_ != nullptr) api_->DestroyEvent(start_);
  if (stream_ != nullptr) api_->DestroyStream(stream_);
}

absl::Status Bench::Open(const uint32_t kernel_sms[2]) {
  std::copy(kernel_sms, kernel_sms + 2, kernel_sms_);
  DeviceInfo info = {};
  void* items = nullptr;
  if (absl::Status s = Check(api_->UseDevice(), "using the device"); !s.ok()) return s;
  if (absl::Status s = Check(api_->GetDeviceInfo(&info), "asking the device"); !s.ok()) return s;
  kernels_ = info.kernels_read_host;
  if (absl::Status s = Check(api_->CreateStream(0, &stream_), "making a stream"); !s.ok()) return s;
  for (Event* event : {&start_, &end_}) {
    if (absl::Status s = Check(api_->CreateEvent(true, event), "making an event"); !s.ok())
      return s;
  }
  if (absl::Status s = Check(api_->AllocateDevice(kMemoryBytes, &device_), "device memory");
      !s.ok())
    return s;
  if (absl::Status s = Check(api_->AllocateHost(kMemoryBytes, &host_), "locked host memory");
      !s.ok())
    return s;
  if (absl::Status s =
          Check(api_->AllocateHost(kMaxCopies * sizeof(CopyItem), &items), "locked host memory");
      !s.ok())
    return s;
  items_ = static_cast<CopyItem*>(items);
  std::memset(host_, 0x5a, kMemoryBytes);  // pages that nobody has touched copy like none else
  return absl::OkStatus();
}

// Fills the lists with the copies of one run and says how many they are: fragment i of the host is
// fragment i / kLayers of layer i % kLayers on the device.
size_t Bench::Lay(uint32_t fragment_bytes, Route route) {
  const size_t count = kRunBytes / fragment_bytes;
  targets_.resize(count);
  sources_.resize(count);
  sizes_.assign(count, fragment_bytes);
  const size_t layer_bytes = kMemoryBytes / kLayers;
  for (size_t i = 0; i < count; ++i) {
    std::byte* host = static_cast<std::byte*>(host_) + i * fragment_bytes;
    std::byte* device =
        static_cast<std::byte*>(device_) + i % kLayers * layer_bytes + i / kLayers * fragment_bytes;
    const bool down = route == Route::kDeviceToCpu;
    targets_[i] = down ? host : device;
    sources_[i] = down ? device : host;
    items_[i] = {targets_[i], sources_[i], fragment_bytes};
  }
  return count;
}

absl::Status Bench::Submit(size_t count, Route route, bool kernel) {
  idle_ = false;
  for (size_t i = 0; i < count; i += kBatch) {
    const size_t batch = std::min(kBatch, count - i);
    const Error error =
        kernel
            ? api_->CopyKernel(items_ + i, batch,
                               static_cast<int>(kernel_sms_[static_cast<size_t>(route)]), stream_)
            : api_->CopyBatch(&targets_[i], &sources_[i], &sizes_[i], batch, stream_);
    if (absl::Status s = Check(error, kernel ? "a copy by kernel" : "a copy by copy engine");
        !s.ok())
      return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Bench::TimedRun(size_t count, Route route, bool kernel) {
  if (absl::Status s = Check(api_->RecordEvent(start_, stream_), "timing"); !s.ok()) return s;
  if (absl::Status s = Submit(count, route, kernel); !s.ok()) return s;
  if (absl::Status s = Check(api_->RecordEvent(end_, stream_), "timing"); !s.ok()) return s;
  if (absl::Status s = Idle(); !s.ok()) return s;
  int64_t ns = 0;
  if (absl::Status s = Check(api_->ElapsedNs(start_, end_, &ns), "timing"); !s.ok()) return s;
  return ns;
}

absl::StatusOr<float> Bench::Rate(uint32_t fragment_bytes, Route route, bool kernel) {
  const size_t count = Lay(fragment_bytes, route);
  const size_t warm_up =
      std::clamp<size_t>(kWarmUpBytes / fragment_bytes, 1, std::min(kBatch, count));
  if (absl::Status s = Submit(warm_up, route, kernel); !s.ok()) return s;
  if (absl::Status s = Idle(); !s.ok()) return s;
  int64_t best_ns = 0;
  for (int run = 0; run < 2; ++run) {
    const absl::StatusOr<int64_t> ns = TimedRun(count, route, kernel);
    if (!ns.ok()) return ns.status();
    if (*ns > 0 && (best_ns == 0 || *ns < best_ns)) best_ns = *ns;
  }
  if (best_ns == 0) return 0;  // the clock is too coarse: not measured
  return static_cast<float>(static_cast<double>(count * fragment_bytes) /
                            static_cast<double>(best_ns));
}

absl::Status Bench::Measure(DeviceReport::Point* point) {
  for (const Route route : {Route::kDeviceToCpu, Route::kCpuToDevice}) {
    for (const bool kernel : {false, true}) {
      if (kernel && (!kernels_ || kernel_sms_[static_cast<size_t>(route)] == 0)) continue;
      const absl::StatusOr<float> rate = Rate(point->fragment_bytes, route, kernel);
      if (!rate.ok()) return rate.status();
      (kernel ? point->kernel : point->copy_engine)[static_cast<size_t>(route)] = *rate;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CurveEntry>> ReadCurves(const std::string& path) {
  // Not through a link, not a pipe that keeps us waiting, not what somebody else may have written.
  UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid()) return absl::NotFoundError(absl::StrCat("no copy curves in ", path));
  struct stat info {};
  if (fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode) || info.st_uid != geteuid() ||
      (info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::DataLossError(absl::StrCat(path, " is not a file that only this user writes"));
  }
  std::string text(kMaxCurveFileBytes + 1, 0);
  size_t length = 0;
  while (length < text.size()) {
    const ssize_t got = read(file.get(), text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::ErrnoToStatus(errno, path);
    if (got == 0) break;
    length += static_cast<size_t>(got);
  }
  text.resize(length);
  return ParseCurves(text);
}

// All directories above the file, private to this user where they are new.
void MakeParents(const std::string& path) {
  for (size_t end = path.find('/', 1); end != std::string::npos; end = path.find('/', end + 1)) {
    mkdir(path.substr(0, end).c_str(), 0700);  // that it cannot be opened is said of the file
  }
}

absl::Status WriteAll(int file, std::string_view text, const std::string& path) {
  while (!text.empty()) {
    const ssize_t written = write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return absl::ErrnoToStatus(errno, path);
    text.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

bool SameKey(const CurveEntry& entry, const std::string& device, int32_t driver_version,
             const uint32_t kernel_sms[2]) {
  return entry.device == device && entry.driver_version == driver_version &&
         std::equal(kernel_sms, kernel_sms + 2, entry.curve.kernel_sms);
}

}  // namespace

uint32_t KernelBelow(const CopyCurve& curve, Route route) {
  const auto direction = static_cast<size_t>(route);
  uint32_t below = 0;
  for (const DeviceReport::Point& point : curve.points) {
    const float engine = point.copy_engine[direction], kernel = point.kernel[direction];
    if (!(engine > 0) || !(kernel > 0)) continue;  // not measured: it says nothing
    const bool wins = kernel >= engine * kWorthIt;
    if (!wins && below == 0) return 0;
    below = point.fragment_bytes;
    if (!wins) break;
  }
  return below;
}

uint32_t DefaultKernelBelow(Route route) { return route == Route::kCpuToDevice ? 28u << 10 : 0; }

absl::StatusOr<CopyCurve> MeasureCopies(Api* api, const uint32_t kernel_sms[2]) {
  Bench bench(api);
  if (absl::Status status = bench.Open(kernel_sms); !status.ok()) return status;
  CopyCurve curve;
  std::copy(kernel_sms, kernel_sms + 2, curve.kernel_sms);
  for (const uint32_t fragment_bytes : kFragments) {
    DeviceReport::Point& point = curve.points.emplace_back();
    point.fragment_bytes = fragment_bytes;
    if (absl::Status status = bench.Measure(&point); !status.ok()) return status;
  }
  return curve;
}

absl::StatusOr<CopyCurve> ReadCurve(const std::string& path, const DeviceInfo& device,
                                    const uint32_t kernel_sms[2]) {
  absl::StatusOr<std::vector<CurveEntry>> entries = ReadCurves(path);
  if (!entries.ok()) return entries.status();
  const std::string name = CurveDeviceName(device);
  for (CurveEntry& entry : *entries) {
    if (SameKey(entry, name, device.driver_version, kernel_sms)) return std::move(entry.curve);
  }
  return absl::NotFoundError(absl::StrCat("no copy curve of this device in ", path));
}

absl::Status WriteCurve(const std::string& path, const DeviceInfo& device, const CopyCurve& curve) {
  const std::string name = CurveDeviceName(device);
  std::vector<CurveEntry> entries = {{name, device.driver_version, curve}};
  if (absl::StatusOr<std::vector<CurveEntry>> known = ReadCurves(path); known.ok()) {
    for (CurveEntry& entry : *known) {
      if (entries.size() == kMaxCurveEntries) break;  // the newest stand first
      if (!SameKey(entry, name, device.driver_version, curve.kernel_sms))
        entries.push_back(std::move(entry));
    }
  }
  const std::string text = FormatCurves(entries);
  // Else it could not be read again, and the entries in it would be lost.
  if (absl::Status status = ParseCurves(text).status(); !status.ok())
    return absl::InvalidArgumentError("the copy curve cannot be kept");

  MakeParents(path);
  std::string temporary = path + ".XXXXXX";
  UniqueFd file(mkostemp(temporary.data(), O_CLOEXEC));  // mode 0600
  if (!file.valid()) return absl::ErrnoToStatus(errno, temporary);
  absl::Status status = WriteAll(file.get(), text, temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = absl::ErrnoToStatus(errno, path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

}  // namespace flexkv::cuda
