#include "flexkv/cli/ssd_report.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "flexkv/base/units.h"

namespace flexkv {
namespace {

uint64_t PerSecond(uint64_t bytes, TimeNs duration_ns) {
  if (duration_ns == 0) return 0;
  return static_cast<uint64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(duration_ns));
}

const char* ResultOf(const SsdDirectoryReport& report) {
  if (report.repair.failures > 0) return "repair failed";
  if (!report.damaged()) return "good";
  return report.repair.fresh_logs + report.repair.dropped_segments > 0 ? "repaired" : "damaged";
}

void AddRepair(const SsdDirectoryReport& report, std::string* out) {
  const SsdRepairReport& repair = report.repair;
  absl::StrAppendFormat(out, "  repair      freed %d bad block(s), %d orphan(s), %d duplicate(s); ",
                        repair.freed_blocks, repair.freed_orphans, repair.freed_duplicates);
  absl::StrAppendFormat(out, "dropped %d segment(s), moved %d block(s); wrote %d log(s)\n",
                        repair.dropped_segments, repair.moved_blocks, repair.fresh_logs);
  if (repair.failures == 0) return;
  absl::StrAppendFormat(out, "              %d step(s) failed, the first: %s\n", repair.failures,
                        repair.first_failure);
}

void AddDirectory(const SsdDirectoryReport& report, bool interrupted, bool repaired,
                  std::string* out) {
  absl::StrAppendFormat(out, "%s: %s\n", report.directory,
                        interrupted && !report.damaged() ? "not finished" : ResultOf(report));
  absl::StrAppendFormat(out, "  segments    %d open, %d cut short, %d unreadable",
                        report.open_segments, report.cut_segments, report.unreadable_segments);
  if (report.rebuilt_segments > 0) {
    absl::StrAppendFormat(out, " (%d with its log lost, read from its blocks' headers)",
                          report.rebuilt_segments);
  }
  absl::StrAppendFormat(out, "\n  blocks      %d good, %d corrupt, %d unreadable",
                        report.good_blocks, report.corrupt_blocks, report.unreadable_blocks);
  if (report.unread_blocks > 0) absl::StrAppendFormat(out, ", %d not read", report.unread_blocks);
  absl::StrAppendFormat(out, "; %s read\n", FormatBytes(report.read_bytes));
  if (!interrupted) {
    absl::StrAppendFormat(out, "  of these    %d orphan(s) (parent missing), %d duplicate(s)\n",
                          report.orphans, report.duplicates);
  }
  absl::StrAppendFormat(out,
                        "  metadata    %d damaged log page(s) or record(s), %d of 2 superblocks "
                        "damaged, %d slot(s) out of use\n",
                        report.damaged_records, report.bad_superblocks, report.quarantined_slots);
  absl::StrAppendFormat(out, "  epochs      %d namespace(s) were reset, highest epoch %d\n",
                        report.namespaces, report.highest_epoch);
  absl::StrAppendFormat(out, "  files       %s", FormatBytes(report.file_bytes));
  if (report.leftover_files > 0) {
    absl::StrAppendFormat(out, ", %d left from an unfinished segment", report.leftover_files);
  }
  out->push_back('\n');
  if (repaired) AddRepair(report, out);
}

nlohmann::json RepairJson(const SsdRepairReport& repair) {
  return {{"freed_blocks", repair.freed_blocks},
          {"freed_orphans", repair.freed_orphans},
          {"freed_duplicates", repair.freed_duplicates},
          {"moved_blocks", repair.moved_blocks},
          {"dropped_segments", repair.dropped_segments},
          {"fresh_logs", repair.fresh_logs},
          {"failures", repair.failures},
          {"first_failure", repair.first_failure}};
}

nlohmann::json DirectoryJson(const SsdDirectoryReport& report, bool repaired) {
  nlohmann::json json = {{"directory", report.directory},
                         {"damaged", report.damaged()},
                         {"segments",
                          {{"open", report.open_segments},
                           {"cut", report.cut_segments},
                           {"unreadable", report.unreadable_segments},
                           {"rebuilt", report.rebuilt_segments}}},
                         {"blocks",
                          {{"good", report.good_blocks},
                           {"corrupt", report.corrupt_blocks},
                           {"unreadable", report.unreadable_blocks},
                           {"unread", report.unread_blocks},
                           {"orphans", report.orphans},
                           {"duplicates", report.duplicates}}},
                         {"damaged_records", report.damaged_records},
                         {"bad_superblocks", report.bad_superblocks},
                         {"leftover_files", report.leftover_files},
                         {"quarantined_slots", report.quarantined_slots},
                         {"namespaces", report.namespaces},
                         {"highest_epoch", report.highest_epoch},
                         {"file_bytes", report.file_bytes},
                         {"read_bytes", report.read_bytes}};
  if (repaired) json["repair"] = RepairJson(report.repair);
  return json;
}

uint64_t ReadBytes(const SsdVerifyReport& report) {
  uint64_t bytes = 0;
  for (const SsdDirectoryReport& directory : report.directories) bytes += directory.read_bytes;
  return bytes;
}

}  // namespace

const char* SsdReportResult(const SsdVerifyReport& report) {
  if (report.interrupted) return "interrupted";
  if (report.repair_failures() > 0) return "repair failed";
  if (!report.damaged()) return "good";
  return report.repaired ? "repaired" : "damaged";
}

std::string SsdReportText(const SsdVerifyReport& report) {
  std::string out;
  for (const SsdDirectoryReport& directory : report.directories) {
    AddDirectory(directory, report.interrupted, report.repaired, &out);
  }
  const uint64_t bytes = ReadBytes(report);
  absl::StrAppendFormat(&out, "%s: %s read in %s (%s/s), %s in all\n", SsdReportResult(report),
                        FormatBytes(bytes), FormatDuration(report.reading_ns),
                        FormatBytes(PerSecond(bytes, report.reading_ns)),
                        FormatDuration(report.elapsed_ns));
  if (report.damaged() && !report.repaired && !report.interrupted) {
    out += "nothing was changed; --repair frees what does not verify\n";
  }
  return out;
}

std::string SsdReportJson(const SsdVerifyReport& report) {
  nlohmann::json json = {
      {"result", SsdReportResult(report)}, {"damaged", report.damaged()},
      {"repaired", report.repaired},       {"interrupted", report.interrupted},
      {"elapsed_ns", report.elapsed_ns},   {"reading_ns", report.reading_ns},
      {"read_bytes", ReadBytes(report)},   {"directories", nlohmann::json::array()}};
  for (const SsdDirectoryReport& directory : report.directories) {
    json["directories"].push_back(DirectoryJson(directory, report.repaired));
  }
  // Names of directories need not be UTF-8.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string SsdProgressText(const SsdVerifyProgress& progress) {
  if (progress.phase == SsdVerifyPhase::kRepairing) {
    return absl::StrCat("repairing ", progress.directory);
  }
  const uint64_t rate = PerSecond(progress.bytes, progress.reading_ns);
  std::string text = absl::StrFormat(
      "%3d %%, %s of %s, %s/s",
      progress.total_bytes == 0 ? 100 : progress.bytes * 100 / progress.total_bytes,
      FormatBytes(progress.bytes), FormatBytes(progress.total_bytes), FormatBytes(rate));
  if (rate > 0) {
    absl::StrAppendFormat(&text, ", %d s left", (progress.total_bytes - progress.bytes) / rate);
  }
  if (progress.bad_blocks > 0) absl::StrAppendFormat(&text, ", %d bad", progress.bad_blocks);
  return text;
}

}  // namespace flexkv
