// What lies at the beginning of a raw device: which files it has, and where. Little-endian.
//
//   0        copy A of the table, 1 MiB
//   1 MiB    copy B
//   2 MiB    units of 1 MiB; a file has a run of them
//
// A copy is a header page of 4096 bytes and an entry of 128 bytes for each file. One checksum
// covers all of it. The copies are written in turns, the higher sequence counts: whatever happens
// to the one being written, the other is whole. Reserved bytes are zero and checked.
//
// Encoding and parsing are pure; parsing takes any bytes and checks every field.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flexkv {

inline constexpr uint64_t kVolumeUnit = 1 << 20;
inline constexpr uint64_t kVolumeCopyBytes = kVolumeUnit;
inline constexpr uint64_t kVolumeFirstUnit = 2;  // behind both copies
inline constexpr uint32_t kVolumePage = 4096;
inline constexpr size_t kMaxVolumeName = 63;
inline constexpr size_t kMaxVolumeFiles = 8000;

struct VolumeFile {
  std::string name;  // 1..63 bytes, no '/', no NUL
  uint64_t first_unit = 0;
  uint64_t units = 0;
  uint64_t bytes = 0;  // in the last unit of the run, or all of it
};

struct VolumeTable {
  std::array<uint8_t, 16> id{};  // of the volume, drawn when it is made
  uint64_t sequence = 0;         // 0: nothing was ever written
  uint64_t device_units = 0;     // when the table was written
  std::vector<VolumeFile> files;

  const VolumeFile* Find(const std::string& name) const;
};

enum class VolumeTableState : uint8_t {
  kGood,
  kBlank,         // zeros
  kDamaged,       // ours, does not verify; or its header was never written
  kForeign,       // not ours
  kOtherVersion,  // ours, another format
};

// Bytes of a copy that holds so many files, whole pages.
uint64_t VolumeTableBytes(size_t files);
// REQUIRES: files.size() <= kMaxVolumeFiles; out.size() == VolumeTableBytes(files.size()).
void EncodeVolumeTable(const VolumeTable& table, std::span<std::byte> out);
// `copy`: kVolumeCopyBytes. Files that lie beyond the device, in each other or in the table make it
// damaged.
VolumeTableState ParseVolumeTable(std::span<const std::byte> copy, VolumeTable* table);

bool VolumeNameIsValid(const std::string& name);

// The first of `units` consecutive units that are free, 0 where there is no such run. `taken` are
// further runs (first unit, units) that are not free. Small files go to the end and large ones to
// the beginning, so that they leave each other's runs whole.
uint64_t FindVolumeRun(const VolumeTable& table,
                       std::span<const std::pair<uint64_t, uint64_t>> taken, uint64_t units);

}  // namespace flexkv
