#include "model/convert.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/log.h"
#include "model/family.h"
#include "model/recipe.h"
#include "model/write_cache.h"
#include "weights/source_matrix.h"

namespace exo::model {
namespace {

using weights::CacheWriter;
using weights::Checkpoint;
using weights::SourceMatrix;

constexpr std::string_view kScaleSuffix = "_scale_inv";
// Copied beside the weights, so that stage 3 works with the checkpoint deleted.
constexpr const char* kCopiedFiles[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja"};
constexpr uint64_t kMaxCopiedBytes = uint64_t{256} << 20;
constexpr int64_t kRowsAtATimeElements = int64_t{1} << 21;

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t d : shape) text += fmt::format("{}{}", text.empty() ? "" : ", ", d);
  return "[" + text + "]";
}

// The first few of `names`, and how many more there are.
std::string some_of(const std::vector<std::string>& names) {
  std::string text;
  const size_t shown = std::min<size_t>(names.size(), 5);
  for (size_t i = 0; i < shown; ++i) text += (i > 0 ? ", '" : "'") + names[i] + "'";
  if (names.size() > shown) text += fmt::format(" and {} more", names.size() - shown);
  return text;
}

bool is_wide(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

// Everything about the checkpoint that can be wrong, before a byte is written.
class Checker {
 public:
  Checker(const Plan& plan, const Checkpoint& checkpoint) : plan_(plan), checkpoint_(checkpoint) {
    for (CheckpointTensor& t : checkpoint_tensors(plan.config)) {
      std::string name = t.name;
      expected_.emplace(std::move(name), std::move(t));
    }
  }

  Status check(const std::vector<RecipeUnit>& recipe) {
    std::vector<std::string> missing;
    for (const RecipeUnit& unit : recipe) {
      for (const RecipeEntry& entry : unit.entries) {
        for (const auto& refs : {entry.sources, entry.ups}) {
          for (const SourceRef& ref : refs) {
            if (!seen_.insert(ref.tensor).second) continue;
            if (!checkpoint_.has(ref.tensor)) {
              missing.push_back(ref.tensor);
              continue;
            }
            EXO_RETURN_IF_ERROR(check_tensor(ref.tensor, entry));
          }
        }
      }
    }
    if (!missing.empty())
      return not_found(fmt::format(
          "{}: {} of {} tensors are missing: {}; the download is incomplete, or config.json "
          "belongs to another checkpoint",
          checkpoint_.folder(), missing.size(), seen_.size(), some_of(missing)));
    warn_unknown();
    return ok_status();
  }

 private:
  Status wrong(const std::string& name, const std::string& what) const {
    return data_loss(fmt::format("{}: tensor '{}': {}", checkpoint_.folder(), name, what));
  }

  Status check_tensor(const std::string& name, const RecipeEntry& entry) const {
    EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, checkpoint_.find(name));
    const CheckpointTensor& expected = expected_.at(name);
    if (info.shape != expected.shape)
      return wrong(name, fmt::format("shape {}, config.json makes it {}", shape_text(info.shape),
                                     shape_text(expected.shape)));
    if (info.dtype == DType::f8_e4m3) {
      if (!expected.quantised) return wrong(name, "F8_E4M3, expected BF16, F16 or F32");
      return check_scales(name, info.shape);
    }
    if (!is_wide(info.dtype))
      return wrong(name, fmt::format("stored as {}, expected BF16, F16, F32 or F8_E4M3",
                                     to_string(info.dtype)));
    if (entry.packed && entry.spec.format == WeightFormat::fp8)
      return wrong(name, fmt::format("stored as {}, but the plan keeps it in fp8; convert with "
                                     "--format bf16",
                                     to_string(info.dtype)));
    const bool is_router = entry.path.ends_with("mlp.gate");
    if (is_router && entry.spec.format == WeightFormat::bf16 && info.dtype != DType::bf16)
      return wrong(name, fmt::format("a router's weight stored as {} would be rounded, because "
                                     "config.json says torch_dtype bfloat16; set it to float32",
                                     to_string(info.dtype)));
    return ok_status();
  }

  Status check_scales(const std::string& name, const std::vector<int64_t>& shape) const {
    const std::string scales = name + std::string(kScaleSuffix);
    const std::vector<int64_t> grid = {ceil_div(shape[0], plan_.config.fp8_block_rows),
                                       ceil_div(shape[1], plan_.config.fp8_block_cols)};
    if (!checkpoint_.has(scales)) return wrong(name, "F8_E4M3 without '" + scales + "'");
    EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, checkpoint_.find(scales));
    if (info.shape != grid)
      return wrong(scales, fmt::format("shape {}, expected {} for blocks of {}x{}",
                                       shape_text(info.shape), shape_text(grid),
                                       plan_.config.fp8_block_rows, plan_.config.fp8_block_cols));
    return ok_status();
  }

  void warn_unknown() const {
    std::vector<std::string> unknown;
    for (const auto& [name, info] : checkpoint_.tensors()) {
      const std::string weight =
          name.ends_with(kScaleSuffix) ? name.substr(0, name.size() - kScaleSuffix.size()) : name;
      // V2 checkpoints carry rotary buffers that config.json determines.
      if (!expected_.contains(weight) && !name.ends_with("rotary_emb.inv_freq"))
        unknown.push_back(name);
    }
    if (!unknown.empty())
      log_warn("{}: {} tensors are not this model's and are left out: {}", checkpoint_.folder(),
               unknown.size(), some_of(unknown));
  }

  const Plan& plan_;
  const Checkpoint& checkpoint_;
  std::map<std::string, CheckpointTensor> expected_;
  std::set<std::string> seen_;
};

Result<bool> same_bytes(const Checkpoint& checkpoint, const std::string& a, const std::string& b) {
  EXO_ASSIGN_OR_RETURN(const weights::TensorInfo x, checkpoint.find(a));
  EXO_ASSIGN_OR_RETURN(const weights::TensorInfo y, checkpoint.find(b));
  if (x.dtype != y.dtype || x.n_bytes != y.n_bytes) return false;
  constexpr uint64_t kStep = uint64_t{4} << 20;
  for (uint64_t at = 0; at < x.n_bytes; at += kStep) {
    const uint64_t n = std::min(kStep, x.n_bytes - at);
    EXO_ASSIGN_OR_RETURN(const MappedPart left, checkpoint.map_bytes(x, at, n));
    EXO_ASSIGN_OR_RETURN(const MappedPart right, checkpoint.map_bytes(y, at, n));
    if (std::memcmp(left.bytes().data(), right.bytes().data(), n) != 0) return false;
  }
  return true;
}

// An MTP layer's copies of embedding and head: one unit for each that isn't the main model's.
Status add_differing_copies(const Plan& plan, const Checkpoint& checkpoint,
                            std::vector<RecipeUnit>& recipe) {
  const std::string main_head =
      plan.config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  for (size_t i = 0; i < plan.prefill.mtp.size(); ++i) {
    const MtpConfig& mtp = plan.prefill.mtp[i];
    const std::string layer = fmt::format("model.layers.{}.", mtp.block.layer);
    const std::string name = fmt::format("mtp.{}.", i);
    const std::vector<int64_t> shape = {plan.config.vocab_size, plan.config.hidden_size};
    const auto differs = [&](const std::string& copy, const std::string& main) -> Result<bool> {
      if (!checkpoint.has(copy) || !checkpoint.has(main)) return false;
      EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, checkpoint.find(copy));
      if (info.shape != shape)
        return data_loss(fmt::format("{}: tensor '{}': shape {}, expected {}", checkpoint.folder(),
                                     copy, shape_text(info.shape), shape_text(shape)));
      EXO_ASSIGN_OR_RETURN(const bool same, same_bytes(checkpoint, copy, main));
      if (!same) log_warn("'{}' differs from '{}' and is stored apart", copy, main);
      return !same;
    };
    const std::string embedding = layer + "embed_tokens.weight";
    const std::string head = layer + "shared_head.head.weight";
    EXO_ASSIGN_OR_RETURN(const bool other_embedding,
                         differs(embedding, "model.embed_tokens.weight"));
    EXO_ASSIGN_OR_RETURN(const bool other_head, differs(head, main_head));
    if (other_embedding && !mtp.embedding)
      recipe.push_back({.name = name + "embedding",
                        .mtp = true,
                        .entries = {{.path = name + "embed_tokens",
                                     .dtype = DType::bf16,
                                     .shape = shape,
                                     .sources = {{.tensor = embedding}}}}});
    if (other_head) {
      const LinearConfig& linear = plan.prefill.lm_head->linear;
      recipe.push_back({.name = name + "head",
                        .mtp = true,
                        .entries = {{.path = name + "shared_head.head",
                                     .packed = true,
                                     .spec = {.format = linear.weight, .k_block = linear.k_block},
                                     .n_out = linear.n_out,
                                     .n_in = linear.n_in,
                                     .n_rows = linear.n_out,
                                     .sources = {{.tensor = head}}}}});
    }
  }
  return ok_status();
}

class Converter {
 public:
  Converter(const Plan& plan, const Checkpoint& checkpoint)
      : plan_(plan), checkpoint_(checkpoint) {}

  Status add(const RecipeEntry& entry, CacheWriter& writer) const {
    return entry.packed ? packed(entry, writer) : plain(entry, writer);
  }

 private:
  Status plain(const RecipeEntry& entry, CacheWriter& writer) const {
    const std::string& name = entry.sources.front().tensor;
    EXO_ASSIGN_OR_RETURN(const weights::TensorInfo info, checkpoint_.find(name));
    if (entry.dtype == DType::bf16 && info.dtype != DType::bf16)
      log_warn("'{}' is rounded from {} to bf16", name, to_string(info.dtype));
    const int64_t n_rows = entry.shape.front();
    const int64_t n_cols = entry.shape.size() > 1 ? entry.shape[1] : 1;
    const int64_t step = std::max<int64_t>(1, kRowsAtATimeElements / n_cols);
    return writer.add_plain_parts(
        entry.path, entry.dtype, entry.shape, [&](const CacheWriter::BytesSink& sink) -> Status {
          std::vector<float> rows;
          std::vector<bf16> rounded;
          for (int64_t row = 0; row < n_rows; row += step) {
            const int64_t n = std::min(step, n_rows - row);
            rows.resize(static_cast<size_t>(n * n_cols));
            EXO_RETURN_IF_ERROR(checkpoint_.read_rows_f32(name, row, n, rows));
            if (entry.dtype == DType::f32) {
              EXO_RETURN_IF_ERROR(sink(std::as_bytes(std::span(rows))));
              continue;
            }
            rounded.resize(rows.size());
            std::transform(rows.begin(), rows.end(), rounded.begin(), to_bf16);
            EXO_RETURN_IF_ERROR(sink(std::as_bytes(std::span(rounded))));
          }
          return ok_status();
        });
  }

  Status packed(const RecipeEntry& entry, CacheWriter& writer) const {
    EXO_ASSIGN_OR_RETURN(const std::vector<SourceMatrix> sources, open(entry.sources));
    EXO_ASSIGN_OR_RETURN(const std::vector<SourceMatrix> ups, open(entry.ups));
    return writer.add_packed(entry.path, sources, ups, entry.spec);
  }

  Result<std::vector<SourceMatrix>> open(const std::vector<SourceRef>& refs) const {
    std::vector<SourceMatrix> out;
    std::optional<SourceMatrix> whole;  // heads are slices of one tensor, opened once
    for (const SourceRef& ref : refs) {
      if (!whole || whole->name() != ref.tensor) {
        EXO_ASSIGN_OR_RETURN(
            whole, SourceMatrix::open(checkpoint_, ref.tensor, plan_.config.fp8_block_rows,
                                      plan_.config.fp8_block_cols));
      }
      SourceMatrix matrix = *whole;
      if (ref.n_rows > 0) {
        EXO_ASSIGN_OR_RETURN(matrix, matrix.slice_rows(ref.row_begin, ref.n_rows));
      }
      if (ref.transposed) {
        EXO_ASSIGN_OR_RETURN(matrix, matrix.transposed());
      }
      out.push_back(std::move(matrix));
    }
    return out;
  }

  const Plan& plan_;
  const Checkpoint& checkpoint_;
};

Status copy_small_files(const std::string& from, const std::string& to) {
  for (const char* name : kCopiedFiles) {
    const auto source = std::filesystem::path(from) / name;
    std::error_code error;
    if (!std::filesystem::exists(source, error)) continue;
    EXO_ASSIGN_OR_RETURN(const std::string bytes, read_file(source.string(), kMaxCopiedBytes));
    EXO_RETURN_IF_ERROR(write_file_atomic((std::filesystem::path(to) / name).string(), bytes));
  }
  return ok_status();
}

}  // namespace

uint64_t cache_bytes(const Plan& plan) {
  return static_cast<uint64_t>(plan.weight_bytes + plan.mtp_weight_bytes);
}

std::vector<CheckpointTensor> checkpoint_tensors(const HfConfig& config) {
  return family_of(config).checkpoint_tensors(config);
}

Status convert_weights(const Plan& plan, const Checkpoint& checkpoint,
                       const std::string& cache_folder, ThreadPool& pool,
                       const OnConvertProgress& on_progress) {
  std::vector<RecipeUnit> recipe = make_recipe(plan);
  EXO_RETURN_IF_ERROR(Checker(plan, checkpoint).check(recipe));
  EXO_RETURN_IF_ERROR(add_differing_copies(plan, checkpoint, recipe));

  const Converter converter(plan, checkpoint);
  return write_cache(
      {.plan = plan,
       .source_hash = checkpoint.header_hash(),
       .folder = cache_folder,
       .pool = pool,
       .on_progress = on_progress,
       .add = [&](const RecipeEntry& entry,
                  CacheWriter& writer) { return converter.add(entry, writer); },
       .add_small_files = [&] { return copy_small_files(checkpoint.folder(), cache_folder); }},
      recipe);
}

}  // namespace exo::model
