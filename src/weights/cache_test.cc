// WeightConfig, CacheWriter and WeightCache together: what was written is found again, and nothing
// that isn't whole is taken for a cache.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>

#include "base/json.h"
#include "weights/cache_writer.h"
#include "weights/hash.h"
#include "weights/safetensors_writer.h"
#include "weights/test_files.h"

namespace exo::weights {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::write_bytes;

constexpr int64_t kExperts = 5, kInter = 37, kHidden = 200;

// Experts (F8_E4M3 and BF16) and a norm.
class SmallCheckpoint {
 public:
  SmallCheckpoint() {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<std::vector<std::byte>> memory;
    std::vector<NamedTensor> tensors;
    const auto add = [&](std::string name, DType dtype, std::vector<int64_t> shape, auto values) {
      const auto bytes = std::as_bytes(std::span(values));
      memory.emplace_back(bytes.begin(), bytes.end());
      tensors.push_back({std::move(name), dtype, std::move(shape), {}});
    };
    for (int64_t e = 0; e < kExperts; ++e) {
      for (const char* part : {"gate", "up"}) {
        std::vector<bf16> wide;
        std::vector<f8_e4m3> narrow;
        for (int64_t i = 0; i < kInter * kHidden; ++i) {
          wide.push_back(to_bf16(normal(random)));
          narrow.push_back(to_f8_e4m3(normal(random) * 100));
        }
        add(fmt::format("{}.{}", part, e), DType::bf16, {kInter, kHidden}, wide);
        add(fmt::format("{}8.{}", part, e), DType::f8_e4m3, {kInter, kHidden}, narrow);
        add(fmt::format("{}8.{}_scale_inv", part, e), DType::f32, {1, 2},
            std::vector<float>{0.01f + static_cast<float>(e), 0.02f});
      }
    }
    for (size_t i = 0; i < tensors.size(); ++i) tensors[i].bytes = memory[i];
    EXPECT_TRUE(write_safetensors(dir_.file("model.safetensors"), tensors).ok());
    auto opened = Checkpoint::open(dir_.str());
    EXPECT_TRUE(opened.ok());
    checkpoint_ = *std::move(opened);
  }
  SourceMatrix open(const std::string& name) const {
    return *SourceMatrix::open(checkpoint_, name, 128, 128);
  }
  std::vector<SourceMatrix> open_all(const std::string& part) const {
    std::vector<SourceMatrix> all;
    for (int64_t e = 0; e < kExperts; ++e) all.push_back(open(fmt::format("{}.{}", part, e)));
    return all;
  }
  WeightConfig identity(std::string format = "test") const {
    WeightConfig config;
    config.source_hash = checkpoint_.header_hash();
    config.format = std::move(format);
    config.layer_begin = 3;
    config.layer_end = 7;
    return config;
  }

 private:
  TempDir dir_;
  Checkpoint checkpoint_;
};

const std::vector<float> kNorm = {1, 2, 3, 4, 5};
const std::vector<std::string> kUnits = {"layers.3.attention", "layers.3.experts", "head"};

Status write_unit(CacheWriter& writer, const SmallCheckpoint& source, const std::string& unit) {
  EXO_RETURN_IF_ERROR(writer.begin_unit(unit));
  if (unit == "layers.3.attention") {
    EXO_RETURN_IF_ERROR(
        writer.add_plain("layers.3.norm", DType::f32, {5}, std::as_bytes(std::span(kNorm))));
    const SourceMatrix m[] = {source.open("gate.0")};
    EXO_RETURN_IF_ERROR(writer.add_packed("layers.3.q", m, {}, {.format = WeightFormat::bf16}));
  } else if (unit == "layers.3.experts") {
    EXO_RETURN_IF_ERROR(writer.add_packed("layers.3.experts.gate_up", source.open_all("gate"),
                                          source.open_all("up"), {.format = WeightFormat::int4}));
    EXO_RETURN_IF_ERROR(writer.add_packed("layers.3.experts.gate_up8", source.open_all("gate8"),
                                          source.open_all("up8"), {.format = WeightFormat::fp8}));
  } else {
    const SourceMatrix m[] = {source.open("up.1")};
    EXO_RETURN_IF_ERROR(writer.add_packed("head", m, {}, {.format = WeightFormat::int8}));
  }
  return writer.end_unit();
}

// Converts what is missing, as `exo convert` does.
Status convert(const SmallCheckpoint& source, const std::string& folder,
               const WeightConfig& identity,
               const std::function<void(uint64_t)>& on_progress = {}) {
  ThreadPool pool(2);
  EXO_ASSIGN_OR_RETURN(auto writer, CacheWriter::create(folder, identity, pool));
  writer->on_progress = on_progress;
  for (const std::string& unit : kUnits) {
    if (!writer->has_unit(unit)) EXO_RETURN_IF_ERROR(write_unit(*writer, source, unit));
  }
  return writer->finish();
}

std::map<std::string, std::string> folder_contents(const std::string& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().filename() != "convert.lock")
      contents[file.path().filename().string()] = *read_file(file.path().string(), 1 << 26);
  }
  return contents;
}

std::string open_message(const std::string& folder) {
  return WeightCache::open(folder).status().message();
}

TEST(WeightCache, FindsWhatWasWritten) {
  const SmallCheckpoint source;
  TempDir dir;
  ASSERT_TRUE(convert(source, dir.str(), source.identity()).ok());
  auto cache = WeightCache::open(dir.str());
  ASSERT_TRUE(cache.ok()) << cache.status().message();
  EXPECT_TRUE(cache->verify().ok());
  EXPECT_EQ(cache->config().layer_begin, 3);
  EXPECT_EQ(cache->config().layer_end, 7);
  EXPECT_EQ(cache->config().format, "test");

  auto norm = cache->tensor("layers.3.norm", DType::f32, {5});
  ASSERT_TRUE(norm.ok()) << norm.status().message();
  EXPECT_EQ(std::vector<float>(norm->ptr<float>(), norm->ptr<float>() + 5), kNorm);

  auto q = cache->matrix("layers.3.q", kInter, kHidden);
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::vector<float> expected(kInter * kHidden);
  ASSERT_TRUE(source.open("gate.0").read_f32(0, kInter, expected).ok());
  EXPECT_EQ(unpack_f32(*q), expected);

  constexpr int64_t kGateUp = 2 * 48;
  for (const bool fp8 : {true, false}) {
    auto experts = cache->matrices(fp8 ? "layers.3.experts.gate_up8" : "layers.3.experts.gate_up",
                                   kExperts, kGateUp, kHidden, true);
    ASSERT_TRUE(experts.ok()) << experts.status().message();
    for (int64_t e = 0; e < kExperts; ++e) {
      const PackedMatrix& m = (*experts)[static_cast<size_t>(e)];
      EXPECT_EQ(reinterpret_cast<uintptr_t>(m.tiles) % 64, 0u);
      EXPECT_EQ(m.format, fp8 ? WeightFormat::fp8 : WeightFormat::int4);
      EXPECT_EQ(m.row_scales == nullptr, fp8);
      EXPECT_EQ(m.block_scales != nullptr, fp8);
      EXPECT_EQ(m.row_sums, nullptr);
      const std::vector<float> packed = unpack_f32(m);
      double noise = 0, signal = 0;
      for (int half = 0; half < 2; ++half) {
        const auto part = fmt::format("{}{}.{}", half == 0 ? "gate" : "up", fp8 ? "8" : "", e);
        ASSERT_TRUE(source.open(part).read_f32(0, kInter, expected).ok());
        for (int64_t i = 0; i < kInter * kHidden; ++i) {
          const int64_t row = i / kHidden;
          const float got = packed[static_cast<size_t>(
              (row / 16 * 32 + half * 16 + row % 16) * kHidden + i % kHidden)];
          const float want = expected[static_cast<size_t>(i)];
          noise += (got - want) * (got - want);
          signal += want * want;
        }
      }
      EXPECT_LE(noise, fp8 ? 0 : signal / 100);
    }
  }
  auto head = cache->matrix("head", kInter, kHidden);
  ASSERT_TRUE(head.ok());
  EXPECT_NE(head->row_sums, nullptr);
  EXPECT_EQ(reinterpret_cast<const std::byte*>(head->row_scales),
            head->tiles + head->weight_bytes());

  EXPECT_THAT(
      cache->matrix("head", kInter + 1, kHidden).status().message(),
      HasSubstr("head.exo: 'head': expected 1 x packed [38, 200], found 1 x int8 [37, 200]"));
  EXPECT_FALSE(cache->matrix("head", kInter, kHidden, true).ok());
  EXPECT_FALSE(cache->matrices("layers.3.experts.gate_up", 4, kGateUp, kHidden, true).ok());
  EXPECT_FALSE(cache->matrix("layers.3.norm", 5, 1).ok());
  EXPECT_THAT(cache->tensor("layers.3.norm", DType::f32, {6}).status().message(),
              HasSubstr("expected f32 [6], found f32 [5]"));
  EXPECT_FALSE(cache->tensor("layers.3.norm", DType::bf16, {5}).ok());
  EXPECT_FALSE(cache->tensor("head", DType::f32, {5}).ok());
  EXPECT_THAT(cache->tensor("layers.9.norm", DType::f32, {5}).status().message(),
              HasSubstr("'layers.9.norm' is missing"));
}

TEST(WeightCache, TellsWhatIsWrongWithAFolder) {
  const SmallCheckpoint source;
  TempDir dir;
  EXPECT_THAT(open_message(dir.str()), HasSubstr("weights.json"));
  ASSERT_TRUE(convert(source, dir.str(), source.identity()).ok());
  const std::string head = *read_file(dir.file("head.exo"), 1 << 26);
  write_bytes(dir.file("head.exo"), head.substr(0, head.size() - 1));
  EXPECT_THAT(open_message(dir.str()), HasSubstr(fmt::format("head.exo: has {} bytes, expected {}",
                                                             head.size() - 1, head.size())));
  std::filesystem::remove(dir.file("head.exo"));
  EXPECT_THAT(open_message(dir.str()), HasSubstr("is not whole"));
  std::string flipped = head;
  flipped[flipped.size() / 2] ^= 1;
  write_bytes(dir.file("head.exo"), flipped);
  auto cache = WeightCache::open(dir.str());
  ASSERT_TRUE(cache.ok());
  EXPECT_THAT(cache->verify().message(),
              HasSubstr("head.exo: 'head' (1 x int8 [37, 200]): its checksum"));
  write_bytes(dir.file("head.exo"), head);
  EXPECT_EQ(open_message(dir.str()), "");
  std::string manifest = *read_file(dir.file("weights.json"), 1 << 26);
  manifest.replace(manifest.find("\"count\": 5"), 10, "\"count\": 4");
  write_bytes(dir.file("weights.json"), manifest);
  EXPECT_THAT(open_message(dir.str()), HasSubstr("the file was changed"));
}

// The manifest with one field changed and its checksum made good again.
std::string forged(const std::string& text, const std::function<void(Json&)>& change) {
  Json json = *parse_json(text, "x");
  change(json["weights"]);
  json["xxh3"] = hash_text(xxh3(json["weights"].dump()));
  return json.dump();
}

TEST(WeightConfig, RefusesForgedManifests) {
  const SmallCheckpoint source;
  TempDir dir;
  ASSERT_TRUE(convert(source, dir.str(), source.identity()).ok());
  const std::string text = *read_file(dir.file("weights.json"), 1 << 26);
  const auto message = [&](const std::function<void(Json&)>& change) {
    return WeightConfig::from_text(forged(text, change), "w").status().message();
  };
  EXPECT_EQ(message([](Json&) {}), "");
  const auto entry = [&](const char* path, const char* field, const Json& value) {
    return message([&](Json& j) { j["entries"][path][field] = value; });
  };
  const char* experts = "layers.3.experts.gate_up";
  const char* norm = "layers.3.norm";
  EXPECT_THAT(message([](Json& j) { j["version"] = 99; }), HasSubstr("another version of exo"));
  EXPECT_THAT(message([](Json& j) { j["source"] = "12"; }), HasSubstr("16 hexadecimal digits"));
  EXPECT_THAT(message([](Json& j) { j["source"] = "0123456789ABCDEF"; }), HasSubstr("hexadecimal"));
  EXPECT_THAT(message([](Json& j) { j["layers"] = {7, 3}; }), HasSubstr("is not a range"));
  EXPECT_THAT(message([](Json& j) { j["files"]["../x"] = 3; }), HasSubstr("not a file name"));
  EXPECT_THAT(message([](Json& j) { j["files"]["x"] = -3; }), HasSubstr("not a file name"));
  EXPECT_THAT(message([](Json& j) { j.erase("entries"); }), HasSubstr("'entries' is missing"));
  EXPECT_THAT(entry(experts, "file", "other.exo"), HasSubstr("is not among 'files'"));
  EXPECT_THAT(entry(experts, "offset", 1 << 30), HasSubstr("lie outside"));
  EXPECT_THAT(entry(experts, "offset", INT64_MAX), HasSubstr("lie outside"));
  EXPECT_THAT(entry(experts, "bytes", INT64_MAX), HasSubstr("lie outside"));
  EXPECT_THAT(entry(norm, "offset", 4), HasSubstr("not aligned"));
  EXPECT_THAT(entry(experts, "count", 1 << 20), HasSubstr("bytes a matrix"));
  EXPECT_THAT(entry(experts, "count", 0), HasSubstr("expected an integer"));
  EXPECT_THAT(entry(experts, "n_in", 400), HasSubstr("bytes a matrix"));
  EXPECT_THAT(entry(experts, "matrix_bytes", 64), HasSubstr("bytes a matrix"));
  EXPECT_THAT(entry(experts, "n_out", 112), HasSubstr("gate_up with 112 rows"));
  EXPECT_THAT(entry(experts, "format", "int3"), HasSubstr("'int3' is not known"));
  EXPECT_THAT(entry(experts, "k_block", 128), HasSubstr("k_block 128 does not go with int4"));
  EXPECT_THAT(entry("layers.3.experts.gate_up8", "k_block", 0), HasSubstr("k_block 0"));
  EXPECT_THAT(entry("layers.3.experts.gate_up8", "k_block", 100), HasSubstr("k_block 100"));
  EXPECT_THAT(entry(experts, "layout", "tiled"), HasSubstr("layout 'tiled'"));
  EXPECT_THAT(entry(norm, "dtype", "f64"), HasSubstr("dtype 'f64'"));
  EXPECT_THAT(entry(norm, "shape", {6}), HasSubstr("needs 24 bytes"));
  EXPECT_THAT(entry(norm, "shape", {1, 1, 1, 1, 5}), HasSubstr("dimensions"));
  EXPECT_THAT(entry(norm, "shape", {int64_t{1} << 40, int64_t{1} << 40}), HasSubstr("is not one"));
  EXPECT_THAT(message([&](Json& j) {
                j["entries"][experts]["n_out"] = int64_t{1} << 31;
                j["entries"][experts]["n_in"] = int64_t{1} << 31;
              }),
              HasSubstr("too large"));
  EXPECT_FALSE(WeightConfig::from_text("", "w").ok());
  EXPECT_FALSE(WeightConfig::from_text("[]", "w").ok());
}

TEST(CacheWriter, GoesOnAfterEveryKindOfInterruption) {
  const SmallCheckpoint source;
  TempDir whole;
  ASSERT_TRUE(convert(source, whole.str(), source.identity()).ok());
  const auto expected = folder_contents(whole.str());
  ASSERT_EQ(expected.size(), 7u);  // three units, their fragments, the manifest
  const auto without = [&](std::initializer_list<const char*> removed) {
    auto dir = std::make_unique<TempDir>();
    for (const auto& [name, bytes] : expected) write_bytes(dir->file(name), bytes);
    for (const char* name : removed) std::filesystem::remove(dir->file(name));
    return dir;
  };
  std::vector<std::unique_ptr<TempDir>> cases;
  cases.push_back(without({"weights.json"}));
  cases.push_back(without({"weights.json", "head.exo.json"}));
  cases.push_back(without({"weights.json", "head.exo.json", "head.exo"}));
  write_bytes(cases.back()->file("head.exo.tmp.1"), "x");
  write_bytes(cases.back()->file("weights.json.tmp.77"), "x");
  cases.push_back(without({"head.exo"}));
  cases.push_back(without({}));
  write_bytes(cases.back()->file("head.exo"), "short");
  cases.push_back(without({}));
  write_bytes(cases.back()->file("head.exo.json"), "{");
  for (const auto& dir : cases) {
    EXPECT_TRUE(convert(source, dir->str(), source.identity()).ok());
    EXPECT_EQ(folder_contents(dir->str()), expected);
  }
}

TEST(CacheWriter, KeepsUnitsOfItsOwnSourceOnly) {
  const SmallCheckpoint source;
  TempDir dir;
  ASSERT_TRUE(convert(source, dir.str(), source.identity()).ok());
  ThreadPool pool(1);
  WeightConfig later = source.identity();
  later.layer_end = 20;
  {
    auto writer = CacheWriter::create(dir.str(), later, pool);
    ASSERT_TRUE(writer.ok());
    EXPECT_TRUE((*writer)->has_unit("head"));
    EXPECT_FALSE((*writer)->has_unit("tail"));
    EXPECT_GT((*writer)->written_bytes(), 0u);
    EXPECT_EQ(open_message(dir.str()), "");  // the old manifest holds until finish()
    auto second = CacheWriter::create(dir.str(), later, pool);
    EXPECT_EQ(second.status().code(), StatusCode::failed_precondition);
    EXPECT_THAT(second.status().message(), HasSubstr("another exo is converting"));
    // Replacing a unit takes the manifest away until finish().
    ASSERT_TRUE((*writer)->begin_unit("head").ok());
    EXPECT_NE(open_message(dir.str()), "");
    ASSERT_TRUE(write_unit(**writer, source, "head").ok());
    ASSERT_TRUE((*writer)->finish().ok());
    EXPECT_EQ(WeightCache::open(dir.str())->config().layer_end, 20);
  }
  auto other = CacheWriter::create(dir.str(), source.identity("int8"), pool);
  ASSERT_TRUE(other.ok());
  EXPECT_FALSE((*other)->has_unit("head"));
  EXPECT_EQ((*other)->written_bytes(), 0u);
  EXPECT_TRUE(folder_contents(dir.str()).empty());
}

TEST(CacheWriter, AnErrorSpoilsTheUnitAndNothingElse) {
  const SmallCheckpoint source;
  TempDir dir;
  ThreadPool pool(1);
  auto created = CacheWriter::create(dir.str(), source.identity(), pool);
  ASSERT_TRUE(created.ok());
  CacheWriter& writer = **created;
  EXPECT_FALSE(writer.end_unit().ok());
  EXPECT_FALSE(writer.add_plain("x", DType::f32, {5}, std::as_bytes(std::span(kNorm))).ok());
  for (const char* bad : {"", "../x", "a/b", ".x"})
    EXPECT_FALSE(writer.begin_unit(bad).ok()) << bad;
  ASSERT_TRUE(write_unit(writer, source, "head").ok());
  ASSERT_TRUE(writer.begin_unit("bad").ok());
  EXPECT_FALSE(writer.add_plain("x", DType::f32, {6}, std::as_bytes(std::span(kNorm))).ok());
  EXPECT_FALSE(writer.add_plain("y", DType::f32, {5}, std::as_bytes(std::span(kNorm))).ok());
  EXPECT_FALSE(writer.end_unit().ok());
  ASSERT_TRUE(writer.begin_unit("bad").ok());
  const SourceMatrix unequal[] = {source.open("gate.0"), *source.open("gate.1").slice_rows(0, 16)};
  EXPECT_THAT(writer.add_packed("x", unequal, {}, {.format = WeightFormat::bf16}).message(),
              HasSubstr("expected equal shapes"));
  EXPECT_FALSE(writer.end_unit().ok());
  ASSERT_TRUE(writer.begin_unit("bad").ok());
  WeightEntry entry;
  entry.n_out = 32;
  entry.n_in = 32;
  EXPECT_THAT(
      writer
          .add_parts("x", entry, [](int64_t, const CacheWriter::PartSink&) { return ok_status(); })
          .message(),
      HasSubstr("0 bytes of a packed matrix, expected 2048"));
  EXPECT_FALSE(writer.end_unit().ok());
  ASSERT_TRUE(writer.begin_unit("unfinished").ok());
  EXPECT_FALSE(writer.finish().ok());
  ASSERT_TRUE(writer.begin_unit("twice").ok());
  const SourceMatrix m[] = {source.open("gate.0")};
  ASSERT_TRUE(writer.add_packed("head", m, {}, {.format = WeightFormat::f32}).ok());
  ASSERT_TRUE(writer.end_unit().ok());
  EXPECT_THAT(writer.finish().message(), HasSubstr("head: in two units"));
  EXPECT_NE(open_message(dir.str()), "");
}

// A child that kills itself somewhere in the conversion; the next run must end in the same bytes.
TEST(CacheWriter, SurvivesSigkillAnywhere) {
  const SmallCheckpoint source;
  TempDir whole, dir;
  ASSERT_TRUE(convert(source, whole.str(), source.identity()).ok());
  const auto expected = folder_contents(whole.str());
  std::mt19937 random(static_cast<unsigned>(::getpid()));
  int n_killed = 0;
  for (int attempt = 0; attempt < 40; ++attempt) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int n_left = attempt;  // pieces to write before the end
      const Status status = convert(source, dir.str(), source.identity(), [&](uint64_t) {
        if (n_left-- == 0) ::raise(SIGKILL);
      });
      ::_exit(status.ok() ? 0 : 1);
    }
    if (attempt % 2 == 1) {
      ::usleep(std::uniform_int_distribution<unsigned>(0, 30000)(random));
      ::kill(child, SIGKILL);
    }
    int state = 0;
    ASSERT_EQ(::waitpid(child, &state, 0), child);
    ASSERT_TRUE(WIFSIGNALED(state) || WEXITSTATUS(state) == 0);
    n_killed += WIFSIGNALED(state) ? 1 : 0;
    if (auto cache = WeightCache::open(dir.str()); cache.ok()) {
      EXPECT_TRUE(cache->verify().ok());
      EXPECT_EQ(folder_contents(dir.str()), expected);
      std::filesystem::remove_all(dir.str());
    }
  }
  EXPECT_GT(n_killed, 10);
  ASSERT_TRUE(convert(source, dir.str(), source.identity()).ok());
  EXPECT_EQ(folder_contents(dir.str()), expected);
}

TEST(CacheWriter, SaysHowMuchDiskIsMissing) {
  TempDir dir;
  EXPECT_TRUE(check_disk_space(dir.file("not/there/yet"), 1000).ok());
  const Status status = check_disk_space(dir.str(), uint64_t{1} << 60);
  EXPECT_EQ(status.code(), StatusCode::resource_exhausted);
  EXPECT_THAT(status.message(), HasSubstr("needs 1152921504.6 GB"));
  EXPECT_THAT(status.message(), HasSubstr("are missing"));
}

}  // namespace
}  // namespace exo::weights
