// The SSD tier's part of the metrics page.
#pragma once

#include "flexkv/base/metrics.h"
#include "flexkv/server/snapshot.h"

namespace flexkv {

void AddSsdMetrics(const DaemonSnapshot& snapshot, PrometheusText* page);

}  // namespace flexkv
