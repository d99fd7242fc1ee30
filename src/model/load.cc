/// Stage 3's beginning: the plan's paths resolved in a mapped cache.
#include <utility>

#include "model/model.h"

namespace exo::model {
namespace {

class Loader {
 public:
  explicit Loader(const weights::WeightCache& cache) : cache_(cache) {}

  Status norm(const NormConfig& config, TensorView& out) const {
    EXO_ASSIGN_OR_RETURN(out, cache_.tensor(config.path, DType::f32, {config.n}));
    return ok_status();
  }

  Status linear(const LinearConfig& config, PackedMatrix& out, bool gate_up = false) const {
    EXO_ASSIGN_OR_RETURN(out, cache_.matrix(config.path, config.n_out, config.n_in, gate_up));
    return check_format(config, out);
  }

  Status linears(const LinearConfig& config, std::vector<PackedMatrix>& out,
                 bool gate_up = false) const {
    EXO_ASSIGN_OR_RETURN(
        out, cache_.matrices(config.path, config.count, config.n_out, config.n_in, gate_up));
    return check_format(config, out.front());
  }

  Status mla(const MlaConfig& prefill, const MlaConfig& decode, MlaWeights& out) const {
    EXO_RETURN_IF_ERROR(norm(prefill.input_norm, out.input_norm));
    if (prefill.q_a) {
      EXO_RETURN_IF_ERROR(linear(*prefill.q_a, out.q_a));
      EXO_RETURN_IF_ERROR(norm(*prefill.q_a_norm, out.q_a_norm));
    }
    EXO_RETURN_IF_ERROR(linear(prefill.q_b, out.q_b));
    EXO_RETURN_IF_ERROR(linear(prefill.kv_a, out.kv_a));
    EXO_RETURN_IF_ERROR(norm(prefill.kv_a_norm, out.kv_a_norm));
    EXO_RETURN_IF_ERROR(linears(prefill.w_k, out.w_uk));
    EXO_RETURN_IF_ERROR(linears(decode.w_k, out.w_uk_t));
    EXO_RETURN_IF_ERROR(linears(prefill.w_v, out.w_uv));
    return linear(prefill.o, out.o);
  }

  Status mlp(const MlpConfig& config, MlpWeights& out) const {
    EXO_RETURN_IF_ERROR(linear(config.gate_up, out.gate_up, /*gate_up=*/true));
    return linear(config.down, out.down);
  }

  Status moe(const MoeConfig& config, MoeWeights& out) const {
    EXO_RETURN_IF_ERROR(linear(config.gate, out.gate));
    if (!config.bias_path.empty()) {
      EXO_ASSIGN_OR_RETURN(out.bias, cache_.tensor(config.bias_path, DType::f32,
                                                   {int64_t{config.router.n_experts}}));
    }
    EXO_RETURN_IF_ERROR(linears(config.gate_up, out.gate_up, /*gate_up=*/true));
    EXO_RETURN_IF_ERROR(linears(config.down, out.down));
    return config.shared ? mlp(*config.shared, out.shared) : ok_status();
  }

  Status layer(const DecoderLayerConfig& prefill, const DecoderLayerConfig& decode,
               DecoderLayerWeights& out) const {
    EXO_RETURN_IF_ERROR(mla(prefill.attention, decode.attention, out.attention));
    EXO_RETURN_IF_ERROR(norm(prefill.post_attention_norm, out.post_attention_norm));
    return prefill.moe ? moe(*prefill.moe, out.moe) : mlp(*prefill.mlp, out.mlp);
  }

 private:
  Status check_format(const LinearConfig& config, const PackedMatrix& found) const {
    if (found.format == config.weight) return ok_status();
    return failed_precondition(cache_.folder() + ": " + config.path + ": expected weights in " +
                               std::string(exo::to_string(config.weight)) + ", found " +
                               std::string(exo::to_string(found.format)) +
                               "; convert the model again for this plan");
  }

  const weights::WeightCache& cache_;
};

}  // namespace

void Weights::stream_experts() {
  cache.advise_single_experts();
  for (DecoderLayerWeights& layer : layers) layer.moe.read_ahead = true;
}

Result<std::unique_ptr<Weights>> load_weights(const Plan& plan, const std::string& cache_folder) {
  auto out = std::make_unique<Weights>();
  EXO_ASSIGN_OR_RETURN(out->cache, weights::WeightCache::open(cache_folder));
  const Loader loader(out->cache);
  const PhaseConfig& phase = plan.prefill;
  if (phase.embedding) {
    EXO_ASSIGN_OR_RETURN(
        out->embedding,
        out->cache.tensor(phase.embedding->path, phase.embedding->dtype,
                          {phase.embedding->vocab_size, phase.embedding->hidden_size}));
  }
  out->layers.resize(phase.layers.size());
  for (size_t i = 0; i < phase.layers.size(); ++i) {
    EXO_RETURN_IF_ERROR(loader.layer(phase.layers[i], plan.decode.layers[i], out->layers[i]));
  }
  if (phase.lm_head) {
    EXO_RETURN_IF_ERROR(loader.norm(phase.lm_head->final_norm, out->final_norm));
    EXO_RETURN_IF_ERROR(loader.linear(phase.lm_head->linear, out->lm_head));
  }
  return out;
}

}  // namespace exo::model
