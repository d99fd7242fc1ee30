// The three stages for one module, the gated MLP of a decoder layer: down(silu(gate x) * (up x)).
//
//   mlp [FORMAT]        bf16 (default), int8 or int4
//
// Stage 1 packs three checkpoint tensors into a weight cache, stage 2 writes down what will be
// computed, stage 3 maps the cache and computes. The checkpoint is deleted before stage 3. The
// result is held against a plain loop over the same weights.
#include <fmt/core.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "model/modules/mlp.h"
#include "tensor/buffer.h"
#include "weights/cache_writer.h"
#include "weights/checkpoint.h"
#include "weights/pack.h"
#include "weights/safetensors_writer.h"
#include "weights/weight_config.h"

namespace {

using exo::Result;
using exo::Status;

constexpr int64_t kHidden = 160, kInter = 208, kTokens = 5;

// A checkpoint of three matrices with normal random weights, as a trainer would have left it.
Status write_checkpoint(const std::string& folder) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  std::vector<std::vector<float>> values;
  std::vector<exo::weights::NamedTensor> tensors;
  const auto add = [&](const std::string& name, int64_t n_out, int64_t n_in) {
    std::vector<float>& v = values.emplace_back(static_cast<size_t>(n_out * n_in));
    for (float& x : v) x = normal(random);
    tensors.push_back({.name = name,
                       .dtype = exo::DType::f32,
                       .shape = {n_out, n_in},
                       .bytes = std::as_bytes(std::span(v))});
  };
  add("mlp.gate_proj.weight", kInter, kHidden);
  add("mlp.up_proj.weight", kInter, kHidden);
  add("mlp.down_proj.weight", kHidden, kInter);
  return exo::weights::write_safetensors(folder + "/model.safetensors", tensors);
}

// Stage 1: checkpoint -> weight cache. Offline; needs the checkpoint, and no config of a run.
Status convert(const std::string& checkpoint_folder, const std::string& cache_folder,
               exo::WeightFormat format, exo::ThreadPool& pool) {
  namespace w = exo::weights;
  EXO_ASSIGN_OR_RETURN(const w::Checkpoint checkpoint, w::Checkpoint::open(checkpoint_folder));
  const auto open = [&](const std::string& name) {
    return w::SourceMatrix::open(checkpoint, "mlp." + name + "_proj.weight", 0, 0);
  };
  EXO_ASSIGN_OR_RETURN(const w::SourceMatrix gate, open("gate"));
  EXO_ASSIGN_OR_RETURN(const w::SourceMatrix up, open("up"));
  EXO_ASSIGN_OR_RETURN(const w::SourceMatrix down, open("down"));

  w::WeightConfig identity;
  identity.source_hash = checkpoint.header_hash();
  identity.format = exo::to_string(format);
  identity.layer_end = 1;
  EXO_ASSIGN_OR_RETURN(const auto writer, w::CacheWriter::create(cache_folder, identity, pool));
  EXO_RETURN_IF_ERROR(writer->begin_unit("mlp"));
  EXO_RETURN_IF_ERROR(writer->add_packed("mlp.gate_up", {&gate, 1}, {&up, 1}, {.format = format}));
  EXO_RETURN_IF_ERROR(writer->add_packed("mlp.down", {&down, 1}, {}, {.format = format}));
  EXO_RETURN_IF_ERROR(writer->end_unit());
  return writer->finish();
}

exo::model::LinearConfig linear(const std::string& path, int64_t n_in, int64_t n_out,
                                exo::WeightFormat format) {
  exo::model::LinearConfig config;
  config.path = path;
  config.n_in = n_in;
  config.n_out = n_out;
  config.weight = format;
  config.activation = exo::ops::activation_dtype(format, /*fp32_compute=*/false);
  return config;
}

// Stage 2: what will be computed, with every shape and type. Pure.
exo::model::MlpConfig make_config(exo::WeightFormat format) {
  exo::model::MlpConfig config;
  config.gate_up = linear("mlp.gate_up", kHidden, 2 * exo::align_up(kInter, 16), format);
  config.down = linear("mlp.down", kInter, kHidden, format);
  config.mul = {.n = kInter, .silu = true, .out = config.down.activation};
  return config;
}

// Stage 3: maps the cache and computes. x, out [kTokens, kHidden] f32.
Status run(const exo::model::MlpConfig& config, const exo::weights::WeightCache& cache,
           const exo::TensorView& x, const exo::TensorView& out, exo::ThreadPool& pool) {
  exo::model::MlpWeights weights;
  EXO_ASSIGN_OR_RETURN(weights.gate_up, cache.matrix(config.gate_up.path, config.gate_up.n_out,
                                                     config.gate_up.n_in, /*gate_up=*/true));
  EXO_ASSIGN_OR_RETURN(weights.down,
                       cache.matrix(config.down.path, config.down.n_out, config.down.n_in));
  const int64_t scratch_bytes = exo::model::mlp::scratch_bytes(config, x.dim(0), pool.n_threads());
  EXO_ASSIGN_OR_RETURN(const exo::Buffer scratch, exo::Buffer::allocate(scratch_bytes));
  exo::Arena arena(scratch.data(), scratch.size_bytes());
  exo::ops::OpContext context;
  context.table = &exo::kernels::cpu::table(exo::kernels::cpu::supported_isas().back());
  context.pool = &pool;
  context.arena = &arena;
  return exo::model::mlp::forward(config, weights, x, out, context);
}

// What it should be: the cache's own weights, unpacked, in a plain loop. out [kTokens, kHidden].
Result<std::vector<double>> expected(const exo::weights::WeightCache& cache,
                                     const exo::model::MlpConfig& config,
                                     const std::vector<float>& x) {
  EXO_ASSIGN_OR_RETURN(const exo::PackedMatrix gate_up_matrix,
                       cache.matrix(config.gate_up.path, config.gate_up.n_out, kHidden, true));
  EXO_ASSIGN_OR_RETURN(const exo::PackedMatrix down_matrix,
                       cache.matrix(config.down.path, kHidden, kInter));
  const std::vector<float> gate_up = exo::weights::unpack_f32(gate_up_matrix);
  const std::vector<float> down = exo::weights::unpack_f32(down_matrix);
  std::vector<double> out(static_cast<size_t>(kTokens * kHidden));
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kInter; ++i) {
      double gate = 0, up = 0;  // panels of 16 rows alternate: gate, up, gate, up ...
      const int64_t gate_row = i / 16 * 32 + i % 16;
      for (int64_t k = 0; k < kHidden; ++k) {
        const double value = x[static_cast<size_t>(t * kHidden + k)];
        gate += value * gate_up[static_cast<size_t>(gate_row * kHidden + k)];
        up += value * gate_up[static_cast<size_t>((gate_row + 16) * kHidden + k)];
      }
      const double product = gate / (1 + std::exp(-gate)) * up;
      for (int64_t n = 0; n < kHidden; ++n)
        out[static_cast<size_t>(t * kHidden + n)] +=
            product * down[static_cast<size_t>(n * kInter + i)];
    }
  }
  return out;
}

Result<double> relative_error(const std::string& folder, exo::WeightFormat format) {
  exo::ThreadPool pool(2);
  EXO_RETURN_IF_ERROR(write_checkpoint(folder));
  const std::string cache_folder = folder + "/cache";
  EXO_RETURN_IF_ERROR(convert(folder, cache_folder, format, pool));
  std::filesystem::remove(folder + "/model.safetensors");
  const exo::model::MlpConfig config = make_config(format);
  EXO_ASSIGN_OR_RETURN(const auto cache, exo::weights::WeightCache::open(cache_folder));

  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(kTokens * kHidden)), out(x.size());
  for (float& value : x) value = normal(random);
  EXO_RETURN_IF_ERROR(run(config, cache, exo::make_view(x.data(), {kTokens, kHidden}),
                          exo::make_view(out.data(), {kTokens, kHidden}), pool));
  EXO_ASSIGN_OR_RETURN(const std::vector<double> reference, expected(cache, config, x));
  double error = 0, norm = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    error += (out[i] - reference[i]) * (out[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "bf16";
  exo::WeightFormat format = exo::WeightFormat::bf16;
  if (name == "int8") format = exo::WeightFormat::int8;
  if (name == "int4") format = exo::WeightFormat::int4;
  std::string folder = (std::filesystem::temp_directory_path() / "exo_mlp_XXXXXX").string();
  if (::mkdtemp(folder.data()) == nullptr) {
    fmt::print(stderr, "mlp: cannot make a folder: {}\n", folder);
    return 1;
  }
  const Result<double> error = relative_error(folder, format);
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  if (!error.ok()) {
    fmt::print(stderr, "mlp: {}\n", error.status().message());
    return 1;
  }
  // What rounding the activations costs: bf16 has 8 bits of mantissa, i8 about 7.
  const double limit = 0.02;
  fmt::print("{} MLP {} -> {} -> {}: relative error {:.4f} (limit {})\n", exo::to_string(format),
             kHidden, kInter, kHidden, *error, limit);
  return *error < limit ? 0 : 1;
}
