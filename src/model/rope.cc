/// Rotary frequencies: plain, or YaRN (arXiv 2309.00071) as in DeepSeek-V3's inference/model.py,
/// precompute_freqs_cis, and transformers' _compute_yarn_parameters, whose f32 steps are followed
/// so that the frequencies come out the same.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/config.h"

namespace exo::model {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

// The pair index whose wavelength turns `n_rotations` times in the original context.
double correction_dim(double n_rotations, double dim, double theta, double original_max) {
  return dim * std::log(original_max / (n_rotations * 2 * std::numbers::pi)) /
         (2 * std::log(theta));
}

void apply_yarn(const YarnConfig& y, int64_t dim, double theta, std::vector<float>& inv_freq) {
  const auto d = static_cast<double>(dim);
  const auto original = static_cast<double>(y.original_max_position_embeddings);
  const double low = std::max(std::floor(correction_dim(y.beta_fast, d, theta, original)), 0.0);
  double high = std::min(std::ceil(correction_dim(y.beta_slow, d, theta, original)), d - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const float ramp = std::clamp(
        (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low), 0.0f,
        1.0f);
    const float keep = 1.0f - ramp;  // of the original frequency
    const auto power = static_cast<float>(
        std::pow(theta, static_cast<double>(static_cast<float>(2 * i) / static_cast<float>(dim))));
    const float interpolated = 1.0f / (static_cast<float>(y.factor) * power);
    inv_freq[i] = interpolated * (1.0f - keep) + inv_freq[i] * keep;
  }
}

}  // namespace

Rope make_rope(const HfConfig& c) {
  Rope rope;
  const int64_t dim = c.qk_rope_head_dim;
  rope.inv_freq.resize(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < rope.inv_freq.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    rope.inv_freq[i] =
        1.0f / static_cast<float>(std::pow(c.rope_theta, static_cast<double>(exponent)));
  }
  double softmax_scale = 1 / std::sqrt(static_cast<double>(c.qk_head_dim()));
  if (c.yarn.has_value()) {
    const YarnConfig& y = *c.yarn;
    apply_yarn(y, dim, c.rope_theta, rope.inv_freq);
    const double all_dim = yarn_mscale(y.factor, y.mscale_all_dim);
    rope.cos_sin_scale = static_cast<float>(yarn_mscale(y.factor, y.mscale) / all_dim);
    softmax_scale *= all_dim * all_dim;
  }
  rope.softmax_scale = static_cast<float>(softmax_scale);
  return rope;
}

}  // namespace exo::model
