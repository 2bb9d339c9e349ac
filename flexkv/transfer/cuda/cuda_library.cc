#include "flexkv/transfer/cuda/cuda_library.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace flexkv::cuda {
namespace {

constexpr char kFileName[] = "libflexkv_cuda.so";
constexpr char kEnvironment[] = "FLEXKV_CUDA_LIBRARY";
// How the library begins its sentence when it refuses an api version.
constexpr char kVersionSentence[] = "version ";

// Where the binary that contains this function lies; "" when that cannot be said.
std::filesystem::path OwnFolder() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&OwnFolder), &info) == 0 || info.dli_fname == nullptr) {
    return {};
  }
  std::error_code error;
  // Of a program it is the name that its caller gave it.
  const std::string_view name = info.dli_fname;
  const bool whole = name.starts_with('/') && !name.starts_with("/proc/");
  const std::filesystem::path file =
      whole ? std::filesystem::path(name) : std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return {};
  return file.parent_path();
}

absl::StatusOr<std::string> BesideThisCode() {
  const std::filesystem::path folder = OwnFolder();
  const std::filesystem::path above = folder.parent_path();
  for (const std::filesystem::path& place :
       {folder / kFileName, above / kFileName, above / "lib" / kFileName}) {
    std::error_code error;
    if (place.is_absolute() && std::filesystem::is_regular_file(place, error)) {
      return place.string();
    }
  }
  return absl::NotFoundError(absl::StrCat("this build of FlexKV has no ", kFileName, " (looked in ",
                                          folder.string(), ")"));
}

// A path that somebody named: what it points to runs in this process.
absl::Status CheckNamed(const std::string& path) {
  if (path.empty() || path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("the CUDA library's path must be absolute: ", path));
  }
  struct stat found;
  if (stat(path.c_str(), &found) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(found.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a file"));
  }
  if (found.st_uid != 0 && found.st_uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, " belongs to another user (uid ", found.st_uid, ")"));
  }
  if ((found.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat(path, " can be written by others (chmod go-w it)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Find(const std::string& path) {
  const char* named = path.empty() ? std::getenv(kEnvironment) : path.c_str();
  if (named == nullptr || *named == '\0') return BesideThisCode();
  const absl::Status checked = CheckNamed(named);
  if (!checked.ok()) return checked;
  return std::string(named);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Api>> OpenLibrary(int device, const std::string& path) {
  const absl::StatusOr<std::string> file = Find(path);
  if (!file.ok()) return file.status();
  void* library = dlopen(file->c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot load the CUDA library: ", dlerror()));
  }
  const auto open = reinterpret_cast<OpenFunction>(dlsym(library, kOpenSymbol));
  if (open == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(*file, " is no CUDA library of FlexKV"));
  }
  char message[256] = "";
  std::unique_ptr<Api> api(open(kApiVersion, device, message, sizeof(message)));
  if (api != nullptr) return api;
  message[sizeof(message) - 1] = '\0';
  if (std::strncmp(message, kVersionSentence, std::strlen(kVersionSentence)) == 0) {
    return absl::FailedPreconditionError(absl::StrCat(*file, ": ", message));
  }
  return absl::UnavailableError(message[0] != '\0' ? message : "the CUDA library did not open");
}

}  // namespace flexkv::cuda
