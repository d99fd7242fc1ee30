/// The operations over single rows.
#include <cmath>

#include "kernels/cpu/bodies.h"
#include "kernels/cpu/latent.h"
#include "kernels/cpu/schedule.h"
#include "kernels/cpu/vector.h"

namespace exo::kernels::cpu {

Status embedding(Isa isa, const ops::EmbeddingArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n = args.out.dim(1);
  const int32_t* ids = args.ids.ptr<int32_t>();
  for_rows(*ctx.pool, args.out.dim(0), n * 4, [&](int64_t i, int) {
    float* out = args.out.row<float>(i);
    if (args.table.dtype == DType::bf16) {
      v.widen_bf16(args.table.row<bf16>(ids[i]), out, n);
    } else {
      std::copy_n(args.table.row<float>(ids[i]), n, out);
    }
  });
  return ok_status();
}

Status rms_norm(Isa isa, const ops::RmsNormArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n = args.x.dim(1);
  for_rows(*ctx.pool, args.x.dim(0), n * 8, [&](int64_t i, int) {
    v.rms_norm(args.x.row<float>(i), args.weight.ptr<float>(), args.eps, args.out.row<float>(i), n);
  });
  return ok_status();
}

Status add(Isa isa, const ops::AddArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n = args.x.dim(1);
  for_rows(*ctx.pool, args.x.dim(0), n * 8,
           [&](int64_t i, int) { v.add(args.x.row<float>(i), args.y.row<float>(i), n); });
  return ok_status();
}

Status pack_rows(Isa isa, const ops::PackRowsArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  for_rows(*ctx.pool, args.x.dim(0), args.x.dim(1) * 8,
           [&](int64_t i, int) { v.pack_row(args.x.row<float>(i), i, args.out); });
  return ok_status();
}

// Once a forward for all layers, and in double: libm's own cos and sin.
Status rope_table(Isa, const ops::RopeTableArgs& args, ops::OpContext& ctx) {
  const int64_t half = args.cos.dim(1);
  constexpr int64_t kCost = 64;  // a cos and a sin take about as long as moving this many bytes
  for_rows(*ctx.pool, args.cos.dim(0), half * kCost, [&](int64_t i, int) {
    const auto position = static_cast<float>(args.positions.ptr<int32_t>()[i]);
    for (int64_t j = 0; j < half; ++j) {
      const double angle = position * args.inv_freq.ptr<float>()[j];
      args.cos.row<float>(i)[j] = static_cast<float>(std::cos(angle)) * args.scale;
      args.sin.row<float>(i)[j] = static_cast<float>(std::sin(angle)) * args.scale;
    }
  });
  return ok_status();
}

Status rope(Isa isa, const ops::RopeArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  const int64_t n_heads = args.x.dim(1), half = args.cos.dim(1);
  for_rows(*ctx.pool, args.x.dim(0), n_heads * half * 16, [&](int64_t i, int) {
    for (int64_t h = 0; h < n_heads; ++h)
      v.rope(args.x.row<float>(i) + h * args.x.stride(1), args.cos.row<float>(i),
             args.sin.row<float>(i), half);
  });
  return ok_status();
}

Status store_latent(Isa isa, const ops::StoreLatentArgs& args, ops::OpContext& ctx) {
  const VectorKernels& v = vector_kernels(isa);
  const ops::LatentPages& pages = args.pages;
  for (const ops::SequenceRows& s : args.sequences) {
    for_rows(*ctx.pool, s.n_rows, pages.entry_bytes() * 2, [&](int64_t r, int) {
      const int64_t token = s.n_past + r;
      store_entry(v, pages, s.pages[static_cast<size_t>(token / ops::kPageTokens)],
                  token % ops::kPageTokens, args.latent.row<float>(s.row_begin + r),
                  args.k_rope.row<float>(s.row_begin + r));
    });
  }
  return ok_status();
}

}  // namespace exo::kernels::cpu
