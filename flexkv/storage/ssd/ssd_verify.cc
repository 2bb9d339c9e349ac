#include "flexkv/storage/ssd/ssd_verify.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_scrub.h"

namespace flexkv {

using ssd::Scrub;
using ssd::Verdict;

namespace {

struct Link {
  NamespaceDigest ns{};
  uint32_t epoch = 0;
  BlockHash hash;
  friend bool operator==(const Link&, const Link&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const Link& link) {
    // Hashes themselves, both: a few bytes of each are enough.
    return H::combine(std::move(state), link.hash.words[0], link.epoch, link.ns[0], link.ns[1]);
  }
};

struct Entry {
  Scrub* scrub = nullptr;
  size_t block = 0;
  const SsdIdentity& identity() const { return scrub->blocks()[block].identity; }
  void Judge(Verdict verdict) const { scrub->verdicts()[block] = verdict; }
};

// Walks the good blocks from the beginnings of their chains on, so that what hangs from an orphan
// is one, too.
void JudgeLinks(const std::vector<std::unique_ptr<Scrub>>& scrubs) {
  std::vector<Entry> good;
  for (const auto& scrub : scrubs) {
    for (size_t i = 0; i < scrub->blocks().size(); ++i) {
      if (scrub->verdicts()[i] == Verdict::kGood) good.push_back({scrub.get(), i});
    }
  }
  std::stable_sort(good.begin(), good.end(), [](const Entry& a, const Entry& b) {
    return a.identity().depth < b.identity().depth;
  });
  absl::flat_hash_set<Link> seen, reachable;
  for (const Entry& entry : good) {
    const SsdIdentity& identity = entry.identity();
    const Link link{identity.ns, identity.epoch, identity.hash};
    if (!seen.insert(link).second) {
      entry.Judge(Verdict::kDuplicate);
    } else if (identity.depth > 0 &&
               !reachable.contains({identity.ns, identity.epoch, identity.parent})) {
      entry.Judge(Verdict::kOrphan);
    } else {
      reachable.insert(link);
    }
  }
}

absl::Status CheckOptions(const SsdVerifyOptions& options) {
  const std::set<std::string> different(options.directories.begin(), options.directories.end());
  if (different.empty()) return absl::InvalidArgumentError("no directory was named");
  if (different.size() != options.directories.size()) {
    return absl::InvalidArgumentError("a directory is named twice");
  }
  if (options.max_inflight_bytes == 0 || options.queue_depth == 0) {
    return absl::InvalidArgumentError("an option of the scrub is out of range");
  }
  return absl::OkStatus();
}

class Verification {
 public:
  explicit Verification(const SsdVerifyOptions& options) : options_(options) {}

  absl::StatusOr<SsdVerifyReport> Run() {
    const TimeNs start = clock_.Now();
    for (const std::string& directory : options_.directories) {
      scrubs_.push_back(std::make_unique<Scrub>(options_, directory));
      if (absl::Status status = scrubs_.back()->Open(); !status.ok()) return status;
      progress_.total_bytes += scrubs_.back()->total_bytes();
    }
    Read();
    if (!report_.interrupted) JudgeLinks(scrubs_);
    for (const auto& scrub : scrubs_) scrub->CountVerdicts();
    if (options_.repair && !report_.interrupted) Repair();
    for (const auto& scrub : scrubs_) report_.directories.push_back(scrub->report);
    report_.elapsed_ns = clock_.Now() - start;
    return std::move(report_);
  }

 private:
  void Read() {
    const TimeNs start = clock_.Now();
    for (const auto& scrub : scrubs_) {
      if (report_.interrupted) break;
      const uint64_t bad_before = progress_.bad_blocks;
      progress_.directory = scrub->report.directory;
      report_.interrupted = !scrub->ReadBlocks([&](uint64_t bytes) {
        progress_.bytes += bytes;
        progress_.bad_blocks = bad_before + scrub->bad_blocks();
        progress_.reading_ns = clock_.Now() - start;
        return Tell();
      });
    }
    report_.reading_ns = clock_.Now() - start;
  }

  void Repair() {
    progress_.phase = SsdVerifyPhase::kRepairing;
    for (const auto& scrub : scrubs_) {
      progress_.directory = scrub->report.directory;
      if (!Tell()) {
        report_.interrupted = true;
        return;
      }
      scrub->Repair();
    }
    report_.repaired = true;
  }

  bool Tell() { return !options_.on_progress || options_.on_progress(progress_); }

  const SsdVerifyOptions& options_;
  const SteadyClock clock_;
  std::vector<std::unique_ptr<Scrub>> scrubs_;
  SsdVerifyProgress progress_;
  SsdVerifyReport report_;
};

}  // namespace

bool SsdVerifyReport::damaged() const {
  return std::any_of(directories.begin(), directories.end(),
                     [](const SsdDirectoryReport& report) { return report.damaged(); });
}

uint64_t SsdVerifyReport::repair_failures() const {
  uint64_t failures = 0;
  for (const SsdDirectoryReport& report : directories) failures += report.repair.failures;
  return failures;
}

absl::StatusOr<SsdVerifyReport> VerifySsd(const SsdVerifyOptions& options) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
  return Verification(options).Run();
}

}  // namespace flexkv
