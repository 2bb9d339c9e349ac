// The bytes of one trace file, whatever it is packed in. Thread: one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flexkv::trace {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // How many of up to `bytes` came; 0: the end. Unavailable: reading failed. DataLoss: what is
  // compressed is cut or corrupt; all bytes before that place have been given out.
  virtual absl::StatusOr<size_t> Read(char* target, size_t bytes) = 0;
  // As stored: read so far, and in all (0: a pipe).
  virtual uint64_t stored_read() const = 0;
  virtual uint64_t stored_bytes() const = 0;
  // The last DataLoss was a file that ends too early, as after a kill, rather than a wrong byte.
  virtual bool cut() const { return false; }
  // A pipe can only be read once.
  virtual bool is_pipe() const = 0;
};

// "-" is standard input; plain, gzip (members one after another) or zstd (frames likewise) by the
// first bytes. A large hole of a sparse file is read as a few zero bytes. NotFound,
// PermissionDenied, InvalidArgument (a directory), Unavailable.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenByteSource(const std::string& path);

}  // namespace flexkv::trace
