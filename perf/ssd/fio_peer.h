// The same load by fio, in a process of its own.
#pragma once

#include <string>

#include "perf/ssd/ssd_load.h"

namespace flexkv::bench {

// "fio-3.33"; exits the program with a word about it when there is none.
std::string FioVersion();
// Exits the program when fio fails.
SsdRate RunFio(const SsdLoad& load);

}  // namespace flexkv::bench
