// A load of random transfers, the same for every contestant.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace flexkv::bench {

// What the buffers lie on, on both sides: it alone makes a factor of two.
enum class Pages { k4KiB, kTransparent, kHugetlb };

struct SsdLoad {
  std::string path;         // of the file, `file_bytes` long and written all over
  uint64_t file_bytes = 0;  // a multiple of block_bytes
  size_t block_bytes = 0;
  uint32_t depth = 0;
  bool write = false;
  double seconds = 0.5;
  std::span<std::byte> memory;  // depth * block_bytes
  Pages pages = Pages::k4KiB;   // of the memory
  bool registered = false;      // memory with the ring
};

struct SsdRate {
  double bytes_per_ns = 0;  // GB/s
  double cpu_us = 0;        // per transfer, all threads of the process
  uint64_t transfers = 0;
};

}  // namespace flexkv::bench
