// Everything that comes from outside, as functions of bytes. Each runs under libFuzzer (clang,
// -DFLEXKV_FUZZ=ON) and, with a fixed corpus and seeded mutations, in an ordinary test of every
// build.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flexkv {

using FuzzInput = std::span<const std::byte>;

struct FuzzTarget {
  const char* name;
  void (*run)(FuzzInput input);
  std::vector<std::string> (*corpus)();
};

// Aborts on what must not happen; returns otherwise.
void FuzzConfig(FuzzInput input);
void FuzzHello(FuzzInput input);
void FuzzMessages(FuzzInput input);  // a sequence of scheduler requests against a real CacheManager
void FuzzRing(FuzzInput input);      // a ring whose producer is hostile

void FuzzSsdSuperblock(FuzzInput input);
void FuzzSsdSlotHeader(FuzzInput input);  // and a region's header
void FuzzSsdLog(FuzzInput input);         // pages of a log region, replayed
void FuzzVolumeTable(FuzzInput input);    // of a raw device

void FuzzDeviceReport(FuzzInput input);
void FuzzDeviceOptions(FuzzInput input);  // of a Welcome
void FuzzCurveFile(FuzzInput input);

void FuzzTrace(FuzzInput input);  // a trace file of any format, packed or plain

std::span<const FuzzTarget> FuzzTargets();
std::span<const FuzzTarget> DeviceFuzzTargets();
std::span<const FuzzTarget> SsdFuzzTargets();
std::span<const FuzzTarget> TraceFuzzTargets();

}  // namespace flexkv
