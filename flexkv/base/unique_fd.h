// Owners of descriptors and mappings. Move-only; release on destruction.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/statusor.h"

namespace flexkv {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

// A shared read-write mapping of a descriptor, unmapped on destruction.
class SharedMapping {
 public:
  SharedMapping() = default;
  // InvalidArgument: the file is shorter than `bytes`. ResourceExhausted: mmap failed.
  static absl::StatusOr<SharedMapping> Map(int fd, size_t bytes);
  SharedMapping(SharedMapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  SharedMapping& operator=(SharedMapping&& other) noexcept {
    if (this != &other) {
      Unmap();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  ~SharedMapping() { Unmap(); }

  std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  void Unmap() {
    if (data_ != nullptr) munmap(std::exchange(data_, nullptr), std::exchange(bytes_, 0));
  }
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// A memfd of `bytes` zero bytes, sealed against shrinking, growing and further seals.
absl::StatusOr<UniqueFd> MakeSealedMemfd(const char* name, size_t bytes);

}  // namespace flexkv
