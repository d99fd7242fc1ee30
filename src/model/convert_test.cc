#include "model/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>

#include "base/os.h"
#include "model/model.h"
#include "model/recipe.h"
#include "model/test_support.h"
#include "weights/pack.h"
#include "weights/safetensors_writer.h"
#include "weights/source_matrix.h"

namespace exo::model {
namespace {

namespace fs = std::filesystem;
using testing::golden_cases;
using testing::golden_dir;
using ::testing::HasSubstr;
using testing::read_config;
using testing::TempDir;
using weights::Checkpoint;

Plan plan_of(const HfConfig& config, const std::string& format = "") {
  const Result<FormatChoice> choice = parse_format(format, config);
  EXPECT_TRUE(choice.ok()) << choice.status().message();
  Result<Plan> plan = make_plan(config, *choice, whole_model(config), {.max_context_tokens = 256});
  EXPECT_TRUE(plan.ok()) << plan.status().message();
  return *std::move(plan);
}

Status convert(const Plan& plan, const std::string& from, const std::string& to,
               const OnConvertProgress& on_progress = nullptr) {
  EXO_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::open(from));
  ThreadPool pool(2);
  return convert_weights(plan, checkpoint, to, pool, on_progress);
}

uint64_t tensor_file_bytes(const std::string& folder) {
  uint64_t n = 0;
  for (const auto& file : fs::directory_iterator(folder))
    if (file.path().extension() == ".exo") n += fs::file_size(file.path());
  return n;
}

std::string all_bytes(const std::string& folder) {
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(folder)) files.push_back(file.path());
  std::sort(files.begin(), files.end());
  std::string bytes;
  for (const fs::path& file : files) {
    const Result<std::string> content = read_file(file.string(), uint64_t{1} << 30);
    EXPECT_TRUE(content.ok());
    bytes += file.filename().string() + "\n" + *content;
  }
  return bytes;
}

// The checkpoint's matrix of a recipe's source as f32.
std::vector<float> source_f32(const Checkpoint& checkpoint, const HfConfig& c,
                              const SourceRef& ref) {
  auto m = weights::SourceMatrix::open(checkpoint, ref.tensor, c.fp8_block_rows, c.fp8_block_cols);
  EXPECT_TRUE(m.ok()) << m.status().message();
  if (ref.n_rows > 0) m = m->slice_rows(ref.row_begin, ref.n_rows);
  if (ref.transposed) m = m->transposed();
  std::vector<float> values(static_cast<size_t>(m->n_rows() * m->n_cols()));
  EXPECT_TRUE(m->read_f32(0, m->n_rows(), values).ok());
  return values;
}

// Rows of gate and up as the interleaved matrix has them.
std::vector<float> interleave(const std::vector<float>& gate, const std::vector<float>& up,
                              int64_t n_rows, int64_t n_in) {
  std::vector<float> out(static_cast<size_t>(2 * align_up(n_rows, kPanelRows) * n_in), 0.0f);
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t to = r / kPanelRows * 2 * kPanelRows + r % kPanelRows;
    std::copy_n(gate.begin() + r * n_in, n_in, out.begin() + to * n_in);
    std::copy_n(up.begin() + r * n_in, n_in, out.begin() + (to + kPanelRows) * n_in);
  }
  return out;
}

TEST(Convert, EveryEntryHoldsTheCheckpointsNumbers) {
  for (const std::string& name : golden_cases()) {
    SCOPED_TRACE(name);
    const HfConfig config = read_config(golden_dir(name) + "/config.json");
    const Plan plan = plan_of(config);
    const TempDir folder;
    const Status status = convert(plan, golden_dir(name), folder.path());
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(tensor_file_bytes(folder.path()), cache_bytes(plan));
    const auto cache = weights::WeightCache::open(folder.path());
    ASSERT_TRUE(cache.ok()) << cache.status().message();
    EXPECT_TRUE(cache->verify().ok());
    const auto checkpoint = Checkpoint::open(golden_dir(name));
    ASSERT_TRUE(checkpoint.ok());
    size_t n_entries = 0;
    for (const RecipeUnit& unit : make_recipe(plan)) {
      for (const RecipeEntry& entry : unit.entries) {
        ++n_entries;
        SCOPED_TRACE(entry.path);
        if (!entry.packed) {
          const auto expected = checkpoint->read_f32(entry.sources[0].tensor);
          const auto& found = cache->config().entries.at(entry.path);
          EXPECT_EQ(found.dtype, entry.dtype);
          EXPECT_EQ(found.shape, entry.shape);
          const auto view =
              entry.shape.size() == 1
                  ? cache->tensor(entry.path, entry.dtype, {entry.shape[0]})
                  : cache->tensor(entry.path, entry.dtype, {entry.shape[0], entry.shape[1]});
          ASSERT_TRUE(view.ok()) << view.status().message();
          for (size_t i = 0; i < expected->size(); ++i) {
            const float got =
                entry.dtype == DType::f32 ? view->ptr<float>()[i] : to_f32(view->ptr<bf16>()[i]);
            ASSERT_EQ(got, (*expected)[i]);
          }
          continue;
        }
        const auto matrices =
            cache->matrices(entry.path, static_cast<int64_t>(entry.sources.size()), entry.n_out,
                            entry.n_in, entry.gate_up());
        ASSERT_TRUE(matrices.ok()) << matrices.status().message();
        for (size_t i = 0; i < entry.sources.size(); ++i) {
          EXPECT_EQ((*matrices)[i].format, entry.spec.format);
          EXPECT_EQ((*matrices)[i].k_block, entry.spec.k_block);
          std::vector<float> expected = source_f32(*checkpoint, config, entry.sources[i]);
          if (entry.gate_up())
            expected = interleave(expected, source_f32(*checkpoint, config, entry.ups[i]),
                                  entry.n_rows, entry.n_in);
          ASSERT_EQ(weights::unpack_f32((*matrices)[i]), expected);
        }
      }
    }
    EXPECT_EQ(cache->config().entries.size(), n_entries);
    EXPECT_TRUE(load_weights(plan, folder.path()).ok());
    EXPECT_TRUE(fs::exists(folder.path() + "/config.json"));
    EXPECT_TRUE(fs::exists(folder.path() + "/generation_config.json"));
  }
}

TEST(Convert, ProgressEndsAtTheTotal) {
  const Plan plan = plan_of(read_config(golden_dir("v2_lite") + "/config.json"));
  const TempDir folder;
  std::vector<ConvertProgress> seen;
  ASSERT_TRUE(convert(plan, golden_dir("v2_lite"), folder.path(), [&](const ConvertProgress& p) {
                seen.push_back(p);
              }).ok());
  ASSERT_GT(seen.size(), 10u);
  EXPECT_EQ(seen.front().done_bytes, 0u);
  for (size_t i = 1; i < seen.size(); ++i) {
    EXPECT_GE(seen[i].done_bytes, seen[i - 1].done_bytes);
    EXPECT_EQ(seen[i].total_bytes, cache_bytes(plan));
  }
  EXPECT_EQ(seen.back().done_bytes, cache_bytes(plan));
}

TEST(Convert, GoesOnWhereItWasAndEqualsAnUndisturbedRun) {
  const std::string from = golden_dir("v3_mtp");
  const Plan plan = plan_of(read_config(from + "/config.json"));
  const TempDir undisturbed, resumed;
  ASSERT_TRUE(convert(plan, from, undisturbed.path()).ok());
  // The state after a kill: some units whole, one half written, no manifest.
  ASSERT_TRUE(convert(plan, from, resumed.path()).ok());
  fs::remove(resumed.path() + "/weights.json");
  for (const char* lost : {"layers.1.experts", "head", "mtp.0"}) {
    fs::remove(resumed.path() + "/" + lost + ".exo");
    fs::remove(resumed.path() + "/" + lost + ".exo.json");
  }
  ASSERT_TRUE(write_file_atomic(resumed.path() + "/head.exo.tmp.1", "half").ok());
  uint64_t first = 0;
  const Status status = convert(plan, from, resumed.path(), [&](const ConvertProgress& p) {
    if (first == 0) first = p.done_bytes;
  });
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_GT(first, 0u);
  EXPECT_LT(first, cache_bytes(plan));
  EXPECT_EQ(all_bytes(resumed.path()), all_bytes(undisturbed.path()));
}

TEST(Convert, ANodesLayersAlone) {
  const std::string from = golden_dir("v3_mtp");
  const HfConfig config = read_config(from + "/config.json");
  Placement last = whole_model(config);
  last.layer_begin = 2;
  const auto plan = make_plan(config, *parse_format("", config), last, {.max_context_tokens = 256});
  ASSERT_TRUE(plan.ok());
  const TempDir folder;
  ASSERT_TRUE(convert(*plan, from, folder.path()).ok());
  EXPECT_EQ(tensor_file_bytes(folder.path()), cache_bytes(*plan));
  const auto cache = weights::WeightCache::open(folder.path());
  ASSERT_TRUE(cache.ok());
  EXPECT_FALSE(cache->has("embed_tokens"));
  EXPECT_FALSE(cache->has("layers.1.self_attn.o_proj"));
  EXPECT_TRUE(cache->has("layers.2.self_attn.o_proj"));
  EXPECT_TRUE(cache->has("lm_head"));
  EXPECT_TRUE(cache->has("mtp.0.embed_tokens"));
  EXPECT_TRUE(load_weights(*plan, folder.path()).ok());
}

// A copy of a golden checkpoint in one file, with each tensor passed through `change`: return false
// to drop it.
struct Tensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};
void rewrite(const std::string& from, const std::string& to,
             const std::function<bool(Tensor&)>& change, const std::string& config_patch = "{}") {
  const auto checkpoint = Checkpoint::open(from);
  ASSERT_TRUE(checkpoint.ok());
  std::vector<Tensor> tensors;
  for (const auto& [name, info] : checkpoint->tensors()) {
    Tensor t{name, info.dtype, info.shape, std::vector<std::byte>(info.n_bytes)};
    ASSERT_TRUE(checkpoint->read_bytes(info, 0, t.bytes).ok());
    if (change(t)) tensors.push_back(std::move(t));
  }
  std::vector<weights::NamedTensor> named;
  named.reserve(tensors.size());
  for (const Tensor& t : tensors) named.push_back({t.name, t.dtype, t.shape, t.bytes});
  ASSERT_TRUE(weights::write_safetensors(to + "/model.safetensors", named).ok());
  Json config = testing::read_json(from + "/config.json");
  config.merge_patch(Json::parse(config_patch));
  ASSERT_TRUE(write_file_atomic(to + "/config.json", config.dump()).ok());
}
void widen(Tensor& t) {  // BF16 to F32
  std::vector<std::byte> wide(t.bytes.size() * 2);
  for (size_t i = 0; i < t.bytes.size() / 2; ++i) {
    bf16 v;
    std::memcpy(&v, t.bytes.data() + 2 * i, 2);
    const float f = to_f32(v);
    std::memcpy(wide.data() + 4 * i, &f, 4);
  }
  t.bytes = std::move(wide);
  t.dtype = DType::f32;
}

std::string error_after(const std::string& name, const std::function<bool(Tensor&)>& change,
                        const std::string& format = "", const std::string& patch = "{}") {
  const TempDir from, to;
  rewrite(golden_dir(name), from.path(), change, patch);
  const Plan plan = plan_of(read_config(from.path() + "/config.json"), format);
  const std::string folder = to.path() + "/cache";
  const Status status = convert(plan, from.path(), folder);
  if (status.ok()) return "(converted)";
  EXPECT_FALSE(fs::exists(folder)) << "something was written before the checks were done";
  return status.message();
}

TEST(Convert, ChecksTheCheckpointBeforeWriting) {
  const auto all = [](Tensor&) { return true; };
  EXPECT_EQ(error_after("moonlight", all), "(converted)");
  EXPECT_THAT(error_after("moonlight",
                          [](const Tensor& t) {
                            return t.name != "model.layers.1.mlp.experts.3.up_proj.weight";
                          }),
              ::testing::AllOf(HasSubstr("tensors are missing"), HasSubstr("experts.3.up_proj")));
  EXPECT_THAT(error_after("moonlight", all, "", R"({"moe_intermediate_size": 32})"),
              ::testing::AllOf(HasSubstr("shape [96, 128]"), HasSubstr("makes it [64, 128]")));
  EXPECT_THAT(error_after("moonlight",
                          [](Tensor& t) {
                            if (t.name.ends_with("mlp.gate.weight")) widen(t);
                            return true;
                          }),
              HasSubstr("set it to float32"));
  EXPECT_EQ(error_after(
                "moonlight",
                [](Tensor& t) {
                  if (t.name.ends_with("mlp.gate.weight")) widen(t);
                  return true;
                },
                "", R"({"torch_dtype": "float32"})"),
            "(converted)");
  EXPECT_THAT(
      error_after("v3_fp8",
                  [](const Tensor& t) { return !t.name.ends_with("o_proj.weight_scale_inv"); }),
      HasSubstr("F8_E4M3 without"));
  EXPECT_THAT(error_after("v3_fp8", all, "bf16",
                          R"({"quantization_config": {"weight_block_size": [64, 128]}})"),
              HasSubstr("for blocks of 64x128"));
  EXPECT_THAT(error_after("v3_fp8", all, "", R"({"quantization_config": null})"),
              HasSubstr("F8_E4M3, expected BF16"));
  // An FP8 config over a checkpoint that somebody has widened.
  EXPECT_THAT(error_after("moonlight", all, "", R"({"quantization_config":
      {"quant_method": "fp8", "weight_block_size": [128, 128]}})"),
              HasSubstr("--format bf16"));
  EXPECT_EQ(error_after("moonlight", all, "bf16", R"({"quantization_config":
      {"quant_method": "fp8", "weight_block_size": [128, 128]}})"),
            "(converted)");
}

TEST(Convert, UnknownTensorsAreNamedAndRotaryBuffersAreNot) {
  const TempDir from, to;
  fs::copy(golden_dir("v2_lite") + "/config.json", from.path() + "/config.json");
  const auto checkpoint = Checkpoint::open(golden_dir("v2_lite"));
  ASSERT_TRUE(checkpoint.ok());
  std::vector<std::vector<std::byte>> bytes;
  std::vector<weights::NamedTensor> named;
  bytes.reserve(checkpoint->tensors().size());
  named.reserve(checkpoint->tensors().size() + 2);
  for (const auto& [name, info] : checkpoint->tensors()) {
    bytes.emplace_back(info.n_bytes);
    ASSERT_TRUE(checkpoint->read_bytes(info, 0, bytes.back()).ok());
    named.push_back({name, info.dtype, info.shape, bytes.back()});
  }
  const std::vector<std::byte> extra(64);
  named.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", DType::f32, {16}, extra});
  named.push_back({"model.layers.9.mystery.weight", DType::f32, {4, 4}, extra});
  ASSERT_TRUE(weights::write_safetensors(from.path() + "/model.safetensors", named).ok());
  const Plan plan = plan_of(read_config(from.path() + "/config.json"));
  ::testing::internal::CaptureStderr();
  const Status status = convert(plan, from.path(), to.path());
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_THAT(log, HasSubstr("1 tensors are not this model's"));
  EXPECT_THAT(log, HasSubstr("model.layers.9.mystery.weight"));
  EXPECT_THAT(log, ::testing::Not(HasSubstr("inv_freq")));
}

TEST(Convert, MtpCopiesAreStoredOnlyIfTheyDiffer) {
  const TempDir from, to;
  rewrite(golden_dir("v3_mtp"), from.path(), [](Tensor& t) {
    if (t.name == "model.layers.3.shared_head.head.weight") t.bytes[6] ^= std::byte{1};
    return true;
  });
  const Plan plan = plan_of(read_config(from.path() + "/config.json"));
  ASSERT_TRUE(convert(plan, from.path(), to.path()).ok());
  const auto cache = weights::WeightCache::open(to.path());
  ASSERT_TRUE(cache.ok());
  EXPECT_TRUE(cache->has("mtp.0.shared_head.head"));
  EXPECT_FALSE(cache->has("mtp.0.embed_tokens"));
}

TEST(Convert, TiedEmbeddingsAreTheHead) {
  const TempDir from, to;
  rewrite(
      golden_dir("v2_lite"), from.path(),
      [](const Tensor& t) { return t.name != "lm_head.weight"; },
      R"({"tie_word_embeddings": true})");
  const Plan plan = plan_of(read_config(from.path() + "/config.json"));
  const Status status = convert(plan, from.path(), to.path());
  ASSERT_TRUE(status.ok()) << status.message();
  const auto weights_loaded = load_weights(plan, to.path());
  ASSERT_TRUE(weights_loaded.ok());
  const std::vector<float> head = weights::unpack_f32((*weights_loaded)->lm_head);
  const TensorView& table = (*weights_loaded)->embedding;
  for (size_t i = 0; i < head.size(); ++i) ASSERT_EQ(head[i], to_f32(table.ptr<bf16>()[i]));
}

TEST(Convert, IntegerFormatsKeepTheMatricesWithinTheirNoise) {
  const std::string from = golden_dir("v3_fp8");
  const HfConfig config = read_config(from + "/config.json");
  const auto checkpoint = Checkpoint::open(from);
  ASSERT_TRUE(checkpoint.ok());
  for (const auto& [format, bound] : {std::pair{"int8", 0.02}, {"int4", 0.15}, {"bf16", 0.004}}) {
    SCOPED_TRACE(format);
    const Plan plan = plan_of(config, format);
    const TempDir to;
    const Status status = convert(plan, from, to.path());
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(tensor_file_bytes(to.path()), cache_bytes(plan));
    const auto loaded = load_weights(plan, to.path());
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    const std::vector<float> found = weights::unpack_f32((*loaded)->layers[1].attention.w_uk_t[2]);
    const std::vector<float> expected = source_f32(
        *checkpoint, config, {"model.layers.1.self_attn.kv_b_proj.weight", 2 * 64, 32, true});
    ASSERT_EQ(found.size(), expected.size());
    double error = 0, size = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += std::pow(found[i] - expected[i], 2);
      size += std::pow(expected[i], 2);
    }
    EXPECT_LT(std::sqrt(error / size), bound);
  }
}

TEST(RandomCache, LoadsInEveryFormatWithPaddingClear) {
  const HfConfig config = read_config(golden_dir("v3_fp8") + "/config.json");
  for (const char* format : {"f32", "bf16", "fp8", "int8", "int4"}) {
    SCOPED_TRACE(format);
    const Plan plan = plan_of(config, format);
    const TempDir a, b;
    ThreadPool one(1), two(2);
    ASSERT_TRUE(write_random_cache(plan, a.path(), 7, one, nullptr).ok());
    ASSERT_TRUE(write_random_cache(plan, b.path(), 7, two, nullptr).ok());
    EXPECT_EQ(all_bytes(a.path()), all_bytes(b.path()));
    EXPECT_EQ(tensor_file_bytes(a.path()), cache_bytes(plan));
    const auto loaded = load_weights(plan, a.path());
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    EXPECT_TRUE((*loaded)->cache.verify().ok());
    const PackedMatrix& down = (*loaded)->layers[1].moe.down[3];  // [288, 136]
    double sum = 0;
    for (const float w : weights::unpack_f32(down)) sum += w * w;
    EXPECT_NEAR(std::sqrt(sum / 288), 1, 0.4);  // of a row
    // gate_up of 136 rows: of the ninth panels of gate and up, rows 8 to 15 are padding.
    const PackedMatrix& gate_up = (*loaded)->layers[1].moe.gate_up[3];
    const std::vector<float> rows = weights::unpack_f32(gate_up);
    for (int64_t r = 0; r < gate_up.n_out; ++r) {
      const bool padding = r / 32 == 8 && r % 16 >= 8;
      const auto row = std::span(rows).subspan(static_cast<size_t>(r * 288), 288);
      EXPECT_EQ(std::all_of(row.begin(), row.end(), [](float w) { return w == 0; }), padding) << r;
      EXPECT_TRUE(std::all_of(row.begin(), row.end(), [](float w) { return std::isfinite(w); }));
    }
    if (gate_up.row_sums == nullptr) continue;
    for (int64_t r = 0; r < gate_up.n_out; ++r) {
      float expected = 0;
      for (int64_t c = 0; c < 288; ++c)
        expected += std::round(rows[static_cast<size_t>(r * 288 + c)] / gate_up.row_scales[r]);
      EXPECT_EQ(static_cast<float>(gate_up.row_sums[r]), expected) << r;
    }
  }
}

TEST(RandomCache, Fp8CodesAreANormalBlocks) {
  const Plan plan = plan_of(read_config(golden_dir("v3_fp8") + "/config.json"), "fp8");
  const TempDir a;
  ThreadPool pool(2);
  ASSERT_TRUE(write_random_cache(plan, a.path(), 7, pool, nullptr).ok());
  const auto loaded = load_weights(plan, a.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  const PackedMatrix& down = (*loaded)->layers[1].moe.down[3];  // [288, 136]
  int64_t beyond_two_deviations = 0, below_normal = 0, n = 0;
  for (const float w : weights::unpack_f32(down)) {
    const float code = std::abs(w / down.block_scales[0]);
    beyond_two_deviations += code > 2 * 448 / 4.1 ? 1 : 0;
    below_normal += code < 0x1p-6f ? 1 : 0;
    ++n;
  }
  EXPECT_NEAR(static_cast<double>(beyond_two_deviations) / static_cast<double>(n), 0.0455, 0.005);
  EXPECT_LT(static_cast<double>(below_normal) / static_cast<double>(n), 0.0005);
}

TEST(RandomCache, AnotherSeedIsAnotherModel) {
  const Plan plan = plan_of(read_config(golden_dir("moonlight") + "/config.json"));
  const TempDir a;
  ThreadPool pool(2);
  ASSERT_TRUE(write_random_cache(plan, a.path(), 1, pool, nullptr).ok());
  const std::string first = all_bytes(a.path());
  ASSERT_TRUE(write_random_cache(plan, a.path(), 1, pool, nullptr).ok());
  EXPECT_EQ(all_bytes(a.path()), first);
  ASSERT_TRUE(write_random_cache(plan, a.path(), 2, pool, nullptr).ok());
  EXPECT_NE(all_bytes(a.path()), first);
}

}  // namespace
}  // namespace exo::model
