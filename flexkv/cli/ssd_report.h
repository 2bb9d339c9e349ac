// The report of `flexkv ssd verify` as text and as JSON.
#pragma once

#include <string>

#include "flexkv/storage/ssd/ssd_verify.h"

namespace flexkv {

std::string SsdReportText(const SsdVerifyReport& report);
std::string SsdReportJson(const SsdVerifyReport& report);  // one object, one line
// "12 %, 1.5 GiB of 12 GiB, 3.0 GiB/s, 4 s left"
std::string SsdProgressText(const SsdVerifyProgress& progress);

// "good", "repaired", "damaged", "interrupted", "repair failed".
const char* SsdReportResult(const SsdVerifyReport& report);

}  // namespace flexkv
