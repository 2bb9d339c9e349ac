#include "flexkv/base/unique_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "absl/status/status.h"

namespace flexkv {

absl::StatusOr<SharedMapping> SharedMapping::Map(int fd, size_t bytes) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return absl::ErrnoToStatus(errno, "fstat of a shared region");
  if (static_cast<uint64_t>(info.st_size) < bytes || bytes == 0) {
    return absl::InvalidArgumentError("a shared region is smaller than announced");
  }
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::ErrnoToStatus(errno, "mmap").message());
  }
  SharedMapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.bytes_ = bytes;
  return mapping;
}

absl::StatusOr<UniqueFd> MakeSealedMemfd(const char* name, size_t bytes) {
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    return absl::ErrnoToStatus(errno, "ftruncate of a memfd");
  }
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return absl::ErrnoToStatus(errno, "sealing a memfd");
  }
  return fd;
}

}  // namespace flexkv
