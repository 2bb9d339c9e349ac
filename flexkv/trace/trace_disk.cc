#include "flexkv/trace/trace_disk.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv::trace {
namespace {

class DirectoryTraceFile : public TraceFile {
 public:
  DirectoryTraceFile(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::Status Append(std::string_view bytes) override {
    if (FaultFires("trace.slow")) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    if (FaultFires("trace.enospc")) return absl::ErrnoToStatus(ENOSPC, path_);
    const bool cut = FaultFires("trace.short_write");
    if (cut) bytes = bytes.substr(0, bytes.size() / 2);
    while (!bytes.empty()) {
      const ssize_t written = write(fd_.get(), bytes.data(), bytes.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) return absl::ErrnoToStatus(written < 0 ? errno : EIO, path_);
      bytes.remove_prefix(static_cast<size_t>(written));
    }
    return cut ? absl::ErrnoToStatus(EIO, path_) : absl::OkStatus();
  }

 private:
  UniqueFd fd_;
  std::string path_;
};

class DirectoryTraceDisk : public TraceDisk {
 public:
  absl::StatusOr<std::unique_ptr<TraceFile>> Create(const std::string& path) override {
    if (FaultFires("trace.open_fails")) return absl::ErrnoToStatus(EIO, path);
    // O_EXCL: neither an older trace nor what a link points to is written over.
    UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_APPEND, 0600));
    if (!fd.valid()) return absl::ErrnoToStatus(errno, path);
    return std::make_unique<DirectoryTraceFile>(std::move(fd), path);
  }

  absl::Status Remove(const std::string& path) override {
    if (unlink(path.c_str()) != 0) return absl::ErrnoToStatus(errno, path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    DIR* dir = opendir(directory.c_str());
    if (dir == nullptr) return absl::ErrnoToStatus(errno, directory);
    std::vector<std::string> names;
    while (const dirent* entry = readdir(dir)) names.emplace_back(entry->d_name);
    closedir(dir);
    return names;
  }
};

}  // namespace

std::unique_ptr<TraceDisk> MakeDirectoryTraceDisk() {
  return std::make_unique<DirectoryTraceDisk>();
}

}  // namespace flexkv::trace
