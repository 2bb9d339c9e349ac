// Rules of registered and allocated memory, and of calls that refuse.
#include <cstring>
#include <string>

#include "tests/transfer/cuda/cuda_rules.h"

namespace flexkv {
namespace {

using cuda::Error;
constexpr size_t kPage = 4096;

std::string RegisteredMemoryIsCopied(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kBytes = 100 * kPage;
  std::byte *pages = lab.Unregistered(kBytes), *a = lab.Device(kBytes);
  const cuda::Stream stream = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  lab.Ok(lab.api.RegisterHost(pages, kBytes), "RegisterHost");
  for (uint64_t round = 0; round < 5; ++round) {
    lab.Fill(pages, kBytes, round);
    lab.Copy(a, pages, kBytes, stream);
    lab.Sync(stream);
    std::memset(pages, 0, kBytes);
    lab.Copy(pages, a, kBytes, stream);
    lab.Sync(stream);
    lab.Expect(lab.Holds(pages, kBytes, round), "wrong bytes");
  }
  lab.Ok(lab.api.UnregisterHost(pages), "UnregisterHost");
  return lab.complaint();
}

std::string RegisteringTwiceIsRefused(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kBytes = 16 * kPage;
  std::byte* pages = lab.Unregistered(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Ok(lab.api.RegisterHost(pages, kBytes), "RegisterHost");
  lab.Expect(lab.api.RegisterHost(pages, kBytes) == Error::kAlreadyRegistered,
             "registered twice, not refused as such");
  lab.Expect(lab.api.RegisterHost(pages + 4 * kPage, kPage) == Error::kAlreadyRegistered,
             "a part registered again, not refused as such");
  lab.Ok(lab.api.UnregisterHost(pages), "UnregisterHost");
  lab.Expect(lab.api.UnregisterHost(pages) == Error::kNotRegistered,
             "unregistered twice, not refused as such");
  lab.Ok(lab.api.RegisterHost(pages, kBytes), "RegisterHost, again");
  lab.Ok(lab.api.UnregisterHost(pages), "UnregisterHost, again");
  return lab.complaint();
}

// Pieces of one mapping come and go by themselves, while copies use the others.
std::string PiecesAreIndependent(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kPiece = 64 * kPage, kPieces = 6;
  std::byte *pages = lab.Unregistered(kPieces * kPiece), *a = lab.Device(kPieces * kPiece);
  const cuda::Stream stream = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  lab.Fill(pages, kPieces * kPiece, 2);
  for (size_t i = 0; i < kPieces; ++i) {
    lab.Ok(lab.api.RegisterHost(pages + i * kPiece, kPiece), "RegisterHost");
    lab.Copy(a + i * kPiece, pages + i * kPiece, kPiece, stream);
  }
  lab.Sync(stream);
  for (size_t i = 0; i < kPieces; i += 2) {
    lab.Ok(lab.api.UnregisterHost(pages + i * kPiece), "UnregisterHost");
  }
  for (size_t i = 1; i < kPieces; i += 2) {
    lab.Copy(pages + i * kPiece, a + i * kPiece, kPiece, stream);
  }
  lab.Sync(stream);
  lab.Expect(lab.Holds(pages, kPieces * kPiece, 2), "wrong bytes");
  for (size_t i = 1; i < kPieces; i += 2) {
    lab.Ok(lab.api.UnregisterHost(pages + i * kPiece), "UnregisterHost");
  }
  return lab.complaint();
}

// The copy engine's call may refuse what lies across two registrations (the agent cuts there), but
// then it says so, and a kernel may copy it.
std::string AcrossTwoPieces(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kPiece = 16 * kPage, kBytes = 4 * kPage;
  std::byte *pages = lab.Unregistered(2 * kPiece), *a = lab.Device(kBytes);
  const cuda::Stream stream = lab.Stream();
  cuda::DeviceInfo info = {};
  lab.Ok(lab.api.GetDeviceInfo(&info), "GetDeviceInfo");
  if (!lab.fine()) return lab.complaint();
  lab.Ok(lab.api.RegisterHost(pages, kPiece), "RegisterHost");
  lab.Ok(lab.api.RegisterHost(pages + kPiece, kPiece), "RegisterHost");
  std::byte* across = pages + kPiece - kBytes / 2;
  lab.Fill(across, kBytes, 12);
  void* target = a;
  const void* source = across;
  const size_t bytes = kBytes;
  const Error error = lab.api.CopyBatch(&target, &source, &bytes, 1, stream);
  lab.Expect(error == Error::kOk || error == Error::kInvalid, "refused in another way");
  lab.Sync(stream);
  if (error == Error::kOk) {
    lab.Expect(lab.Holds(lab.Download(a, kBytes).data(), kBytes, 12), "engine: wrong bytes");
  }
  if (info.kernels_read_host) {
    auto* item = reinterpret_cast<cuda::CopyItem*>(lab.Host(sizeof(cuda::CopyItem)));
    if (item != nullptr) *item = {a, across, kBytes};
    lab.Ok(lab.api.CopyKernel(item, 1, 4, stream), "CopyKernel");
    lab.Sync(stream);
    lab.Expect(lab.Holds(lab.Download(a, kBytes).data(), kBytes, 12), "kernel: wrong bytes");
  }
  lab.Ok(lab.api.UnregisterHost(pages), "UnregisterHost");
  lab.Ok(lab.api.UnregisterHost(pages + kPiece), "UnregisterHost");
  return lab.complaint();
}

std::string AllocatedHostMemoryIsOrdinary(RulesDevice& device) {
  RuleLab lab(device);
  for (size_t bytes : {size_t{1}, size_t{100}, size_t{kPage}, size_t{5 << 20}}) {
    std::byte *host = lab.Host(bytes), *a = lab.Device(bytes);
    if (!lab.fine()) break;
    lab.Expect(reinterpret_cast<uintptr_t>(host) % 16 == 0, "not aligned to 16 bytes");
    const cuda::Stream stream = lab.Stream();
    lab.Fill(host, bytes, bytes);
    lab.Copy(a, host, bytes, stream);
    lab.Sync(stream);
    std::memset(host, 0, bytes);
    lab.Copy(host, a, bytes, stream);
    lab.Sync(stream);
    lab.Expect(lab.Holds(host, bytes, bytes), "wrong bytes");
  }
  return lab.complaint();
}

// Each of these refuses, or shrugs; the device works on.
std::string RefusalsLoseNothing(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Event untimed = lab.Event(), timed = lab.Event(true);
  const cuda::Stream stream = lab.Stream();
  std::byte* pages = lab.Unregistered(kPage);
  if (!lab.fine()) return lab.complaint();
  int64_t ns = 0;
  cuda::Stream none = nullptr;
  void* memory = nullptr;
  const std::pair<const char*, Error> tried[] = {
      {"ElapsedNs without times", lab.api.ElapsedNs(untimed, timed, &ns)},
      {"ElapsedNs of nothing recorded", lab.api.ElapsedNs(timed, timed, &ns)},
      {"RegisterHost of nothing", lab.api.RegisterHost(nullptr, 0)},
      {"UnregisterHost of what is not registered", lab.api.UnregisterHost(pages)},
      {"CreateStream of a priority there is not", lab.api.CreateStream(77, &none)},
      {"AllocateDevice of all there is", lab.api.AllocateDevice(size_t{1} << 50, &memory)},
  };
  if (none != nullptr) (void)lab.api.DestroyStream(none);
  for (const auto& [what, error] : tried) {
    lab.Expect(error != Error::kSticky && error != Error::kUnloading,
               std::string(what) + " lost the context");
    if (none == nullptr || std::string(what).find("priority") == std::string::npos) {
      lab.Expect(error != Error::kOk, std::string(what) + " was taken");
    }
  }
  std::byte *a = lab.Device(kPage), *host = lab.Host(kPage);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(host, kPage, 30);
  lab.Copy(a, host, kPage, stream);
  lab.Sync(stream);
  lab.Expect(lab.Holds(lab.Download(a, kPage).data(), kPage, 30), "wrong bytes after refusals");
  return lab.complaint();
}

std::string RangesNest(RulesDevice& device) {
  RuleLab lab(device);
  lab.api.PushRange("outer");
  lab.api.PushRange("inner");
  lab.api.PopRange();
  lab.api.PopRange();
  return lab.complaint();
}

}  // namespace

void internal::AddMemoryRules(std::vector<CudaRule>* rules) {
  for (const CudaRule& rule : std::initializer_list<CudaRule>{
           {"RegisteredMemoryIsCopied", RegisteredMemoryIsCopied},
           {"RegisteringTwiceIsRefused", RegisteringTwiceIsRefused},
           {"PiecesAreIndependent", PiecesAreIndependent},
           {"AcrossTwoPieces", AcrossTwoPieces, true},
           {"AllocatedHostMemoryIsOrdinary", AllocatedHostMemoryIsOrdinary},
           {"RefusalsLoseNothing", RefusalsLoseNothing, true},
           {"RangesNest", RangesNest}}) {
    rules->push_back(rule);
  }
}

}  // namespace flexkv
