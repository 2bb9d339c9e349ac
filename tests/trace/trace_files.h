// Files for tests of readers and writer: a directory that goes away, packing, reading all of it.
#pragma once

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "flexkv-trace-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string Path(const std::string& name) const { return path_ + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string Gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// With a checksum, as the zstd program does.
inline std::string Zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  out.resize(ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
  ZSTD_freeCCtx(context);
  return out;
}

// Everything of a trace, by way of many small batches.
struct WholeTrace {
  absl::Status opened, ended;  // ended: of the call that was the last
  RequestBatch all;
  TraceInfo info;
};

inline WholeTrace ReadAll(const std::vector<std::string>& paths,
                          const OpenTraceOptions& options = {}, uint64_t max_blocks = 5) {
  WholeTrace whole;
  auto source = OpenTrace(paths, options);
  whole.opened = source.status();
  if (!source.ok()) return whole;
  RequestBatch batch;
  while (true) {
    const absl::StatusOr<bool> more = (*source)->Next(max_blocks, &batch);
    whole.ended = more.status();
    if (!more.ok() || !*more) break;
    EXPECT_FALSE(batch.requests.empty() && batch.evictions.empty());
    for (TraceRequest request : batch.requests) {
      request.first_block += whole.all.blocks.size();
      whole.all.requests.push_back(request);
    }
    whole.all.blocks.insert(whole.all.blocks.end(), batch.blocks.begin(), batch.blocks.end());
    whole.all.evictions.insert(whole.all.evictions.end(), batch.evictions.begin(),
                               batch.evictions.end());
  }
  whole.info = (*source)->info();
  return whole;
}

// Blocks of a request, as numbers that are small and equal where ids are.
inline std::vector<std::vector<int>> BlockNumbers(const RequestBatch& batch) {
  std::vector<uint64_t> seen;
  std::vector<std::vector<int>> numbers;
  for (const TraceRequest& request : batch.requests) {
    std::vector<int>& row = numbers.emplace_back();
    for (const uint64_t id : batch.BlocksOf(request)) {
      const auto found = std::find(seen.begin(), seen.end(), id);
      row.push_back(static_cast<int>(found - seen.begin()));
      if (found == seen.end()) seen.push_back(id);
    }
  }
  return numbers;
}

}  // namespace flexkv::trace
