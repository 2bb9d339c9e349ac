#include "flexkv/trace/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv::trace {
namespace {

constexpr size_t kMagicBytes = 4;
constexpr uint32_t kGzipMagic = 0x8b1f;      // two bytes
constexpr uint32_t kZstdMagic = 0xfd2fb528;  // four
constexpr size_t kPackedBytesAtOnce = 128 << 10;
constexpr off_t kLargeHole = 1 << 20;
constexpr int kMaxZstdWindowLog = 27;  // 128 MiB: what the zstd program takes by default

// A descriptor, with the first bytes looked at before.
class FdSource : public ByteSource {
 public:
  FdSource(UniqueFd fd, std::string path, const struct stat& info)
      : fd_(std::move(fd)), path_(std::move(path)), is_file_(S_ISREG(info.st_mode)) {
    if (!is_file_) return;
    bytes_ = static_cast<uint64_t>(info.st_size);
    sparse_ = info.st_blocks * 512 < info.st_size;
  }

  // The first four bytes, 0 where the file has fewer.
  absl::StatusOr<uint32_t> Magic() {
    while (peeked_ < kMagicBytes) {
      absl::StatusOr<size_t> got = ReadFd(peek_ + peeked_, kMagicBytes - peeked_);
      if (!got.ok()) return got.status();
      if (*got == 0) break;
      peeked_ += *got;
    }
    uint32_t magic = 0;
    std::memcpy(&magic, peek_, peeked_);
    return magic;
  }

  absl::StatusOr<size_t> Read(char* target, size_t bytes) override {
    if (given_ < peeked_) {
      const size_t now = std::min(bytes, peeked_ - given_);
      std::memcpy(target, peek_ + given_, now);
      given_ += now;
      return now;
    }
    if (sparse_) SkipHole();
    return ReadFd(target, bytes);
  }

  uint64_t stored_read() const override { return read_; }
  uint64_t stored_bytes() const override { return bytes_; }
  bool is_pipe() const override { return !is_file_; }

 private:
  // No line survives a zero byte, so that a hole need not be read to be found bad. Its last part is
  // still delivered.
  void SkipHole() {
    const auto here = static_cast<off_t>(read_);
    off_t data = lseek(fd_.get(), here, SEEK_DATA);
    if (data < 0 && errno == ENXIO) data = static_cast<off_t>(bytes_);
    if (data > here + kLargeHole) read_ = static_cast<uint64_t>(data - 4096);
    lseek(fd_.get(), static_cast<off_t>(read_), SEEK_SET);
  }

  absl::StatusOr<size_t> ReadFd(char* target, size_t bytes) {
    while (true) {
      const ssize_t got = read(fd_.get(), target, bytes);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return absl::UnavailableError(absl::StrCat(path_, ": ", strerror(errno)));
      read_ += static_cast<uint64_t>(got);
      return static_cast<size_t>(got);
    }
  }

  UniqueFd fd_;
  const std::string path_;
  const bool is_file_;
  bool sparse_ = false;
  uint64_t bytes_ = 0, read_ = 0;
  char peek_[kMagicBytes] = {};
  size_t peeked_ = 0, given_ = 0;
};

// What gzip and zstd share: a buffer of packed bytes.
class PackedSource : public ByteSource {
 public:
  PackedSource(std::unique_ptr<ByteSource> inner, std::string path)
      : path_(std::move(path)), inner_(std::move(inner)), packed_(new char[kPackedBytesAtOnce]) {}

  uint64_t stored_read() const override { return inner_->stored_read(); }
  uint64_t stored_bytes() const override { return inner_->stored_bytes(); }
  bool is_pipe() const override { return inner_->is_pipe(); }
  bool cut() const override { return cut_; }

 protected:
  // False: the end of the file.
  absl::StatusOr<bool> Refill() {
    absl::StatusOr<size_t> got = inner_->Read(packed_.get(), kPackedBytesAtOnce);
    if (!got.ok()) return got.status();
    packed_bytes_ = *got;
    return *got != 0;
  }
  absl::Status Cut() {
    cut_ = true;
    return absl::DataLossError(absl::StrCat(path_, ": the compressed file is cut"));
  }
  absl::Status Corrupt(const char* why) const {
    return absl::DataLossError(absl::StrCat(path_, ": the compressed file is corrupt: ", why));
  }

  const std::string path_;
  std::unique_ptr<ByteSource> inner_;
  std::unique_ptr<char[]> packed_;
  size_t packed_bytes_ = 0;
  bool cut_ = false;
};

class GzipSource : public PackedSource {
 public:
  using PackedSource::PackedSource;
  ~GzipSource() override { inflateEnd(&stream_); }
  GzipSource(const GzipSource&) = delete;
  GzipSource& operator=(const GzipSource&) = delete;

  absl::Status Init() {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK) {
      return absl::ResourceExhaustedError("no memory to read gzip");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> Read(char* target, size_t bytes) override {
    bytes = std::min<size_t>(bytes, 1 << 30);
    stream_.next_out = reinterpret_cast<Bytef*>(target);
    stream_.avail_out = static_cast<uInt>(bytes);
    while (stream_.avail_out == bytes) {
      if (stream_.avail_in == 0) {
        absl::StatusOr<bool> more = Refill();
        if (!more.ok()) return more.status();
        if (!*more) return between_ ? absl::StatusOr<size_t>(size_t{0}) : Cut();
        stream_.next_in = reinterpret_cast<Bytef*>(packed_.get());
        stream_.avail_in = static_cast<uInt>(packed_bytes_);
      }
      const absl::Status status = Step();
      if (!status.ok()) return status;
    }
    return bytes - stream_.avail_out;
  }

 private:
  absl::Status Step() {
    if (between_ && *stream_.next_in == 0) {  // padding after the last member
      ++stream_.next_in;
      --stream_.avail_in;
      return absl::OkStatus();
    }
    between_ = false;
    const int result = inflate(&stream_, Z_NO_FLUSH);
    if (result == Z_STREAM_END) {
      between_ = true;
      inflateReset(&stream_);
      return absl::OkStatus();
    }
    if (result == Z_OK || result == Z_BUF_ERROR) return absl::OkStatus();
    return Corrupt(stream_.msg != nullptr ? stream_.msg : "inflate failed");
  }

  z_stream stream_{};
  bool between_ = false;  // members
};

class ZstdSource : public PackedSource {
 public:
  ZstdSource(std::unique_ptr<ByteSource> inner, std::string path)
      : PackedSource(std::move(inner), std::move(path)), stream_(ZSTD_createDCtx()) {
    ZSTD_DCtx_setParameter(stream_, ZSTD_d_windowLogMax, kMaxZstdWindowLog);
  }
  ~ZstdSource() override { ZSTD_freeDCtx(stream_); }
  ZstdSource(const ZstdSource&) = delete;
  ZstdSource& operator=(const ZstdSource&) = delete;

  absl::StatusOr<size_t> Read(char* target, size_t bytes) override {
    ZSTD_outBuffer out{target, bytes, 0};
    while (out.pos == 0) {
      if (in_.pos == in_.size && !pending_) {
        absl::StatusOr<bool> more = Refill();
        if (!more.ok()) return more.status();
        if (!*more) return between_ ? absl::StatusOr<size_t>(size_t{0}) : Cut();
        in_ = {packed_.get(), packed_bytes_, 0};
      }
      const size_t left = ZSTD_decompressStream(stream_, &out, &in_);
      if (ZSTD_isError(left)) return Corrupt(ZSTD_getErrorName(left));
      between_ = left == 0;
      pending_ = out.pos == bytes && !between_;  // more may come without more input
    }
    return out.pos;
  }

 private:
  ZSTD_DCtx* stream_;
  ZSTD_inBuffer in_{nullptr, 0, 0};
  bool between_ = false;  // frames
  bool pending_ = false;
};

absl::StatusOr<UniqueFd> OpenFd(const std::string& path) {
  UniqueFd fd(path == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                          : open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, path);
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> OpenByteSource(const std::string& path) {
  absl::StatusOr<UniqueFd> fd = OpenFd(path);
  if (!fd.ok()) return fd.status();
  struct stat info {};
  if (fstat(fd->get(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is a directory"));
  }
  auto plain = std::make_unique<FdSource>(*std::move(fd), path, info);
  absl::StatusOr<uint32_t> magic = plain->Magic();
  if (!magic.ok()) return magic.status();
  if (*magic == kZstdMagic) return std::make_unique<ZstdSource>(std::move(plain), path);
  if ((*magic & 0xffff) != kGzipMagic) return plain;
  auto gzip = std::make_unique<GzipSource>(std::move(plain), path);
  const absl::Status status = gzip->Init();
  if (!status.ok()) return status;
  return gzip;
}

}  // namespace flexkv::trace
