#include <cmath>

#include "ops/reference/bodies.h"

namespace exo::ops::reference {

Status embedding(const EmbeddingArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.out.dim(0); ++i) {
    const int32_t id = args.ids.ptr<int32_t>()[i];
    float* out = args.out.row<float>(i);
    for (int64_t j = 0; j < args.out.dim(1); ++j) {
      out[j] = args.table.dtype == DType::bf16 ? to_f32(args.table.row<bf16>(id)[j])
                                               : args.table.row<float>(id)[j];
    }
  }
  return ok_status();
}

Status rms_norm(const RmsNormArgs& args, OpContext&) {
  const int64_t n = args.x.dim(1);
  const float* weight = args.weight.ptr<float>();
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const float* x = args.x.row<float>(i);
    float* out = args.out.row<float>(i);
    float sum = 0;
    for (int64_t j = 0; j < n; ++j) sum += x[j] * x[j];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(n) + args.eps);
    for (int64_t j = 0; j < n; ++j) out[j] = x[j] * scale * weight[j];
  }
  return ok_status();
}

Status add(const AddArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const float* x = args.x.row<float>(i);
    float* y = args.y.row<float>(i);
    for (int64_t j = 0; j < args.x.dim(1); ++j) y[j] += x[j];
  }
  return ok_status();
}

Status rope_table(const RopeTableArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.cos.dim(0); ++i) {
    const auto position = static_cast<float>(args.positions.ptr<int32_t>()[i]);
    for (int64_t j = 0; j < args.cos.dim(1); ++j) {
      const float angle = position * args.inv_freq.ptr<float>()[j];
      args.cos.row<float>(i)[j] =
          static_cast<float>(std::cos(static_cast<double>(angle))) * args.scale;
      args.sin.row<float>(i)[j] =
          static_cast<float>(std::sin(static_cast<double>(angle))) * args.scale;
    }
  }
  return ok_status();
}

Status rope(const RopeArgs& args, OpContext&) {
  for (int64_t i = 0; i < args.x.dim(0); ++i) {
    const float* cos = args.cos.row<float>(i);
    const float* sin = args.sin.row<float>(i);
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      float* x = args.x.row<float>(i) + h * args.x.stride(1);
      for (int64_t j = 0; j < args.cos.dim(1); ++j) {
        const float a = x[2 * j], b = x[2 * j + 1];
        x[2 * j] = a * cos[j] - b * sin[j];
        x[2 * j + 1] = a * sin[j] + b * cos[j];
      }
    }
  }
  return ok_status();
}

}  // namespace exo::ops::reference
