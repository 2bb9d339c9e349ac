#include "flexkv/server/config.h"

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/config_cases.h"

namespace flexkv {
namespace {

using testing::HasSubstr;

class ConfigErrorTest : public testing::TestWithParam<ErrorCase> {};

TEST_P(ConfigErrorTest, OneClearLine) { ExpectOneClearLine(GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Table, ConfigErrorTest,
    testing::Values(
        ErrorCase{"", "not valid JSON", ""}, ErrorCase{"{", "not valid JSON", ""},
        ErrorCase{"[1]", "must be a JSON object", ""},
        ErrorCase{R"({"cache_config": 3})", "cache_config", "object"},
        ErrorCase{R"({"cache_config": {}, "evict_ratio": 0.1})", "cache_config", "only key"},
        // unknown names, with the nearest known one
        ErrorCase{R"({"evict_ration": 0.1})", "evict_ration", "did you mean evict_ratio?"},
        ErrorCase{R"({"cpu_cache_byte": 1})", "cpu_cache_byte", "did you mean cpu_cache_bytes?"},
        ErrorCase{R"({"Socket_Dir": "/tmp"})", "Socket_Dir", "did you mean socket_dir?"},
        ErrorCase{R"({"enable_ssds": true})", "enable_ssds", "did you mean enable_ssd?"},
        ErrorCase{R"({"zzzzzzzzzzzzzzz": 1})", "zzzzzzzzzzzzzzz", "unknown key"},
        ErrorCase{"{\"a\\nb\": 1}", "a?b", "unknown key"},
        // parts not in this build
        ErrorCase{R"({"enable_remote": true})", "enable_remote", "not in this build"},
        ErrorCase{R"({"num_remote_blocks": 5})", "num_remote_blocks", "not in this build"},
        ErrorCase{R"({"tokens_per_block": 32})", "tokens_per_block", "not in this build"},
        ErrorCase{R"({"eviction_policy": "mru"})", "eviction_policy", "one of lru"},
        ErrorCase{R"({"eviction_objective": "bytes"})", "eviction_objective", "tokens, compute"},
        // devices
        ErrorCase{R"({"use_ce_transfer_h2d": "always"})", "use_ce_transfer_h2d", "\"auto\", true"},
        ErrorCase{R"({"use_ce_transfer_d2h": 1})", "use_ce_transfer_d2h", "false (kernel)"},
        ErrorCase{R"({"use_ce_transfer": true})", "use_ce_transfer", "use_ce_transfer_"},
        ErrorCase{R"({"transfer_sms_h2d": 0})", "transfer_sms_h2d", "from 1 to 132"},
        ErrorCase{R"({"transfer_sms_d2h": 133})", "transfer_sms_d2h", "from 1 to 132"},
        ErrorCase{R"({"transfer_sms": 8})", "transfer_sms", "did you mean transfer_sms_"},
        ErrorCase{R"({"transfer_bytes_in_flight_h2d": "1MB"})", "transfer_bytes_in_flight_h2d",
                  "at least 1.00 MiB"},
        ErrorCase{R"({"transfer_bytes_in_flight_d2h": "5GiB"})", "transfer_bytes_in_flight_d2h",
                  "at most 4.00 GiB"},
        ErrorCase{R"({"transfer_bytes_in_flight_d2h": "10%"})", "transfer_bytes_in_flight_d2h", ""},
        ErrorCase{R"({"transfer_batch_copies": 0})", "transfer_batch_copies", "from 1 to 65536"},
        ErrorCase{R"({"transfer_batch_copies": 65537})", "transfer_batch_copies", "to 65536"},
        ErrorCase{R"({"transfer_above_compute": 1})", "transfer_above_compute", "true or false"},
        ErrorCase{R"({"layerwise_layers_ahead": 0})", "layerwise_layers_ahead", "from 1 to 1024"},
        ErrorCase{R"({"layerwise_layers_ahead": 1025})", "layerwise_layers_ahead", "to 1024"},
        ErrorCase{R"({"layerwise_layer_ahead": 3})", "layerwise_layer_ahead",
                  "did you mean layerwise_layers_ahead?"},
        // the trace
        ErrorCase{R"({"enable_trace": true})", "enable_trace", "needs trace_file_path"},
        ErrorCase{R"({"enable_trace": 1})", "enable_trace", "true or false"},
        ErrorCase{R"({"enable_traces": true})", "enable_traces", "did you mean enable_trace?"},
        ErrorCase{R"({"trace_file_path": "x.jsonl"})", "trace_file_path", "absolute path"},
        ErrorCase{R"({"trace_file_path": "/tmp/"})", "trace_file_path", "absolute path of a file"},
        ErrorCase{R"({"trace_file_path": "/tmp/a\nb"})", "trace_file_path", "absolute path"},
        ErrorCase{R"({"trace_file_path": 3})", "trace_file_path", "string"},
        ErrorCase{R"({"trace_rotate_bytes": 5})", "trace_rotate_bytes", "at least 64.0 KiB"},
        ErrorCase{R"({"trace_rotate_bytes": "1 bit"})", "trace_rotate_bytes", "not a size"},
        ErrorCase{R"({"trace_max_files": -1})", "trace_max_files", "whole number"},
        ErrorCase{R"({"trace_compress": "gzip"})", "trace_compress", "none, zstd"},
        ErrorCase{R"({"trace_compress": true})", "trace_compress", "string"},
        ErrorCase{R"({"trace_hashes": "long"})", "trace_hashes", "none, short, full"},
        // wrong types
        ErrorCase{R"({"cpu_cache_bytes": true})", "cpu_cache_bytes", "not true"},
        ErrorCase{R"({"cpu_cache_bytes": 1.5})", "cpu_cache_bytes", "not 1.5"},
        ErrorCase{R"({"num_cpu_blocks": "many"})", "num_cpu_blocks", "whole number"},
        ErrorCase{R"({"evict_ratio": "0.1"})", "evict_ratio", "number from 0 to 1"},
        ErrorCase{R"({"use_thp": 1})", "use_thp", "true or false"},
        ErrorCase{R"({"allowed_uids": 1000})", "allowed_uids", "list"},
        ErrorCase{R"({"allowed_uids": []})", "allowed_uids", "list"},
        ErrorCase{R"({"allowed_uids": ["root"]})", "allowed_uids", "whole number"},
        ErrorCase{R"({"metrics": 9090})", "metrics", "string"},
        ErrorCase{R"({"log_level": "loud"})", "log_level", "info"},
        // zero, negative, out of range
        ErrorCase{R"({"cpu_cache_bytes": 0})", "cpu_cache_bytes", "at least 2.00 MiB"},
        ErrorCase{R"({"cpu_cache_bytes": -5})", "cpu_cache_bytes", "not -5"},
        ErrorCase{R"({"cpu_cache_bytes": "-5GB"})", "cpu_cache_bytes", "not a size"},
        ErrorCase{R"({"cpu_cache_bytes": "5 bananas"})", "cpu_cache_bytes", "not a size"},
        ErrorCase{R"({"cpu_cache_bytes": "120%"})", "cpu_cache_bytes", "above 100"},
        ErrorCase{R"({"num_cpu_blocks": 0})", "num_cpu_blocks", "at least 1"},
        ErrorCase{R"({"num_cpu_blocks": -1})", "num_cpu_blocks", "at least 1"},
        ErrorCase{R"({"evict_ratio": -0.1})", "evict_ratio", "from 0 to 1"},
        ErrorCase{R"({"evict_ratio": 1.1})", "evict_ratio", "from 0 to 1"},
        ErrorCase{R"({"evict_start_ratio": 0})", "evict_start_ratio", "above 0"},
        ErrorCase{R"({"lease_timeout_ms": 0})", "lease_timeout_ms", "from 1"},
        ErrorCase{R"({"max_engines": 0})", "max_engines", "from 1"},
        ErrorCase{R"({"spin_us": 100000})", "spin_us", "to 1000"},
        ErrorCase{R"({"idle_exit_s": -1})", "idle_exit_s", "from 0"},
        ErrorCase{R"({"segment_bytes": "1MiB"})", "segment_bytes", "at least"},
        ErrorCase{R"({"numa_node": -2})", "numa_node", "NUMA"},
        ErrorCase{R"({"numa_node": 999})", "numa_node", "no NUMA node 999"},
        // larger than memory, missing directory, not loopback
        ErrorCase{R"({"cpu_cache_bytes": "200GiB"})", "cpu_cache_bytes",
                  "more than the 100 GiB of memory"},
        ErrorCase{R"({"cpu_cache_bytes": 1e30})", "cpu_cache_bytes", ""},
        ErrorCase{R"({"socket_dir": "/no/such/place"})", "socket_dir", "/no/such does not exist"},
        ErrorCase{R"({"socket_dir": "relative"})", "socket_dir", "absolute"},
        ErrorCase{R"({"metrics": "0.0.0.0:9090"})", "metrics", "loopback"},
        ErrorCase{R"({"metrics": "192.168.1.1:9090"})", "metrics", "loopback"},
        ErrorCase{R"({"metrics": "127.0.0.1"})", "metrics", "HOST:PORT"},
        ErrorCase{R"({"metrics": "127.0.0.1:99999"})", "metrics", "HOST:PORT"}));

TEST(ConfigTest, DefaultsAreAQuarterOfMemoryAndTheOwnUser) {
  const absl::StatusOr<DaemonConfig> config = ParseConfig("{}", kConfigContext);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->cpu_cache_bytes, 25ull << 30);
  EXPECT_EQ(config->allowed_uids, std::vector<uid_t>{1000});
}

TEST(ConfigTest, BothFormsAndUnitsAreRead) {
  for (const char* text :
       {R"({"cpu_cache_bytes": "10GB", "evict_ratio": 0})",
        R"({"cache_config": {"cpu_cache_bytes": 10000000000, "evict_ratio": 0.0}})",
        R"({"cpu_cache_bytes": "10 gb", /* a comment */ "evict_ratio": 0})"}) {
    const absl::StatusOr<DaemonConfig> config = ParseConfig(text, kConfigContext);
    ASSERT_TRUE(config.ok()) << text << config.status();
    EXPECT_EQ(config->cpu_cache_bytes, 10000000000u);
    EXPECT_EQ(config->evict_ratio, 0);
  }
}

TEST(ConfigTest, OffValuesOfOtherBuildsAreAccepted) {
  EXPECT_TRUE(
      ParseConfig(
          R"({"enable_ssd": false, "num_ssd_blocks": 0, "ssd_cache_dir": "", "ssd_cache_bytes": null,
              "ssd_cache_iouring_entries": 0, "enable_remote": false, "trace_file_path": null,
              "tokens_per_block": 0})",
          kConfigContext)
          .ok());
}

TEST(ConfigTest, WhatIsPrintedIsReadBack) {
  const absl::StatusOr<DaemonConfig> config =
      ParseConfig(R"({"cpu_cache_bytes": "3GiB", "num_cpu_blocks": 77, "allowed_uids": [1000, 1001],
                      "metrics": "127.0.0.1:0", "spin_us": 0})",
                  kConfigContext);
  ASSERT_TRUE(config.ok()) << config.status();
  const std::string printed = ConfigToJson(*config);
  const absl::StatusOr<DaemonConfig> again = ParseConfig(printed, kConfigContext);
  ASSERT_TRUE(again.ok()) << again.status() << printed;
  EXPECT_EQ(ConfigToJson(*again), printed);
  EXPECT_EQ(again->num_cpu_blocks, 77u);
}

TEST(ConfigTest, TheDevicesKeysAreReadAndPrinted) {
  const absl::StatusOr<DaemonConfig> config =
      ParseConfig(R"({"use_ce_transfer_h2d": true, "use_ce_transfer_d2h": false,
                      "transfer_sms_h2d": 1, "transfer_sms_d2h": 132,
                      "transfer_bytes_in_flight_h2d": "1MiB", "transfer_bytes_in_flight_d2h": 4294967296,
                      "transfer_batch_copies": 65536, "transfer_above_compute": true,
                      "layerwise_layers_ahead": 1024})",
                  kConfigContext);
  ASSERT_TRUE(config.ok()) << config.status();
  constexpr auto kUp = static_cast<size_t>(Route::kCpuToDevice);
  constexpr auto kDown = static_cast<size_t>(Route::kDeviceToCpu);
  EXPECT_EQ(config->copy.engine[kUp], CopyOptions::Engine::kCopyEngine);
  EXPECT_EQ(config->copy.engine[kDown], CopyOptions::Engine::kKernel);
  EXPECT_EQ(config->copy.kernel_sms[kUp], 1u);
  EXPECT_EQ(config->copy.kernel_sms[kDown], 132u);
  EXPECT_EQ(config->copy.bytes_in_flight[kUp], 1u << 20);
  EXPECT_EQ(config->copy.bytes_in_flight[kDown], 4ull << 30);
  EXPECT_EQ(config->copy.batch_copies, 65536u);
  EXPECT_TRUE(config->copy.above_compute);
  EXPECT_EQ(config->copy.layers_ahead, 1024u);
  const std::string printed = ConfigToJson(*config);
  const absl::StatusOr<DaemonConfig> again = ParseConfig(printed, kConfigContext);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ConfigToJson(*again), printed);
}

TEST(ConfigTest, TheDevicesDefaults) {
  const std::string printed = ConfigToJson(*ParseConfig("{}", kConfigContext));
  for (const char* line :
       {R"("use_ce_transfer_h2d": "auto")", R"("use_ce_transfer_d2h": "auto")",
        R"("transfer_sms_h2d": 8)", R"("transfer_sms_d2h": 8)",
        R"("transfer_bytes_in_flight_h2d": 33554432)",
        R"("transfer_bytes_in_flight_d2h": 33554432)", R"("transfer_batch_copies": 256)",
        R"("transfer_above_compute": false)", R"("layerwise_layers_ahead": 3)"}) {
    EXPECT_THAT(printed, HasSubstr(line));
  }
  EXPECT_EQ(ConfigToJson(*ParseConfig(
                R"({"use_ce_transfer_h2d": "auto", "transfer_sms_d2h": null})", kConfigContext)),
            printed);
}

TEST(ConfigTest, TheTracesKeysAreReadAndPrinted) {
  const absl::StatusOr<DaemonConfig> config =
      ParseConfig(R"({"enable_trace": true, "trace_file_path": "/tmp/t.jsonl", "trace_max_files": 0,
                      "trace_rotate_bytes": "1MiB", "trace_compress": "zstd", "trace_hashes": "full",
                      "eviction_objective": "compute"})",
                  kConfigContext);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->trace.enabled);
  EXPECT_EQ(config->trace.path, "/tmp/t.jsonl");
  EXPECT_EQ(config->trace.rotate_bytes, 1u << 20);
  EXPECT_EQ(config->trace.max_files, 0u);
  EXPECT_TRUE(config->trace.zstd);
  EXPECT_EQ(config->trace.hashes, trace::TraceHashes::kFull);
  EXPECT_EQ(config->eviction_objective, EvictionObjective::kCompute);
  const std::string printed = ConfigToJson(*config);
  const absl::StatusOr<DaemonConfig> again = ParseConfig(printed, kConfigContext);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ConfigToJson(*again), printed);
}

TEST(ConfigTest, WhereATraceCannotBeWritten) {
  TraceConfig config;
  config.path = "/no/such/place/trace.jsonl";
  EXPECT_TRUE(CheckTracePath(config).ok()) << "tracing is off";
  config.enabled = true;
  EXPECT_EQ(CheckTracePath(config).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(CheckTracePath(config).message()),
              HasSubstr("trace_file_path: the directory /no/such/place does not exist"));
  config.path = "/etc/passwd/trace.jsonl";
  EXPECT_FALSE(CheckTracePath(config).ok());
  config.path = "/tmp";  // as a file
  EXPECT_EQ(CheckTracePath(config).code(), absl::StatusCode::kInvalidArgument);
  config.path = "/tmp/trace.jsonl";
  EXPECT_TRUE(CheckTracePath(config).ok());
}

TEST(ConfigTest, EveryExampleRunsAsItIs) {
  int examples = 0;
  for (const auto& entry : std::filesystem::directory_iterator(FLEXKV_EXAMPLES_DIR)) {
    if (entry.path().extension() != ".json") continue;
    ++examples;
    const absl::StatusOr<DaemonConfig> config = ReadConfigFile(entry.path(), SystemConfigContext());
    EXPECT_TRUE(config.ok()) << entry.path() << ": " << config.status();
  }
  EXPECT_GE(examples, 3);
}

TEST(ConfigTest, FilesThatCannotBeReadAreNamed) {
  EXPECT_THAT(std::string(ReadConfigFile("/no/such.json", kConfigContext).status().message()),
              HasSubstr("/no/such.json"));
  EXPECT_FALSE(ReadConfigFile("/tmp", kConfigContext).ok());
}

}  // namespace
}  // namespace flexkv
