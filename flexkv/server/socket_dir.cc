#include "flexkv/server/socket_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace flexkv {
namespace {

absl::Status CheckDirectory(const std::string& path, bool others_may_attach) {
  const mode_t mode = others_may_attach ? 0711 : 0700;
  if (mkdir(path.c_str(), mode) == 0) {
    chmod(path.c_str(), mode);  // whatever the umask is
  } else if (errno == ENOENT) {
    return absl::NotFoundError(
        absl::StrCat("the socket directory ", path, " cannot be created: its parent is missing"));
  } else if (errno != EEXIST) {
    return absl::PermissionDeniedError(
        absl::StrCat("cannot create the socket directory ", path, ": ", std::strerror(errno)));
  }
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("lstat of ", path));
  if (S_ISLNK(info.st_mode) || !S_ISDIR(info.st_mode)) {
    return absl::PermissionDeniedError(
        absl::StrCat("the socket directory ", path, " is not a directory of its own (a symlink?)"));
  }
  if (info.st_uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat("the socket directory ", path, " belongs to uid ", info.st_uid));
  }
  const mode_t forbidden = others_may_attach ? 0066 : 0077;
  if ((info.st_mode & forbidden) != 0) {
    return absl::PermissionDeniedError(absl::StrCat("the socket directory ", path,
                                                    " is open to other users; chmod it to ",
                                                    others_may_attach ? "0711" : "0700"));
  }
  return absl::OkStatus();
}

std::string ReadSmall(int fd) {
  char text[32] = {};
  const ssize_t got = pread(fd, text, sizeof(text) - 1, 0);
  return std::string(text, got > 0 ? static_cast<size_t>(got) : 0);
}

pid_t PidIn(const std::string& text) {
  int pid = 0;
  return absl::SimpleAtoi(std::string(absl::StripSuffix(text, "\n")), &pid) && pid > 0 ? pid : 0;
}

absl::Status RemoveStaleSocket(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0) return absl::OkStatus();
  if (!S_ISSOCK(info.st_mode)) {
    return absl::PermissionDeniedError(absl::StrCat(path, " exists and is not a socket"));
  }
  return unlink(path.c_str()) == 0 ? absl::OkStatus()
                                   : absl::ErrnoToStatus(errno, absl::StrCat("unlink of ", path));
}

}  // namespace

SocketPaths::SocketPaths(const std::string& socket_dir)
    : dir(socket_dir),
      handshake(socket_dir + "/daemon.sock"),
      admin(socket_dir + "/admin.sock"),
      metrics(socket_dir + "/metrics.sock"),
      lock(socket_dir + "/daemon.lock") {}

std::string DefaultSocketDir() {
  const char* dir = std::getenv("FLEXKV_SOCKET_DIR");
  if (dir != nullptr && *dir != '\0') return dir;
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime != '\0') return absl::StrCat(runtime, "/flexkv");
  return absl::StrCat("/tmp/flexkv-", geteuid());
}

absl::StatusOr<SocketDir> SocketDir::Open(const std::string& path, bool others_may_attach) {
  SocketPaths paths(path);
  if (paths.metrics.size() >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("the socket directory's path is too long (",
                                                   path.size(), " bytes, at most 93): ", path));
  }
  if (absl::Status status = CheckDirectory(path, others_may_attach); !status.ok()) return status;
  UniqueFd lock(open(paths.lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return absl::ErrnoToStatus(errno, absl::StrCat("open of ", paths.lock));
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("another flexkvd (pid ", PidIn(ReadSmall(lock.get())), ") runs on ", path));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(lock.get(), 0) != 0 ||
      pwrite(lock.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return absl::ErrnoToStatus(errno, absl::StrCat("write of ", paths.lock));
  }
  for (const std::string& socket : {paths.handshake, paths.admin, paths.metrics}) {
    if (absl::Status status = RemoveStaleSocket(socket); !status.ok()) return status;
  }
  return SocketDir(std::move(paths), std::move(lock));
}

SocketDir::~SocketDir() {
  if (!lock_.valid()) return;  // moved from
  for (const std::string& socket : {paths_.handshake, paths_.admin, paths_.metrics})
    unlink(socket.c_str());
}

}  // namespace flexkv
