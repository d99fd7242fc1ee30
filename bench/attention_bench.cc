// Both forms of attention at DeepSeek-V2-Lite's width (16 heads, latent 512 + 64), the absorbed one
// with V3's 128 heads too. Generated tokens find their layer's cache in memory, not in the
// processor's caches: layers take turns.
#include "bench_support.h"

namespace exo::bench {
namespace {

constexpr int64_t kHeads = 16, kV3Heads = 128, kNope = 128, kRope = 64, kRank = 512, kValue = 128;

struct Cache {
  ops::LatentPages pages;
  Buffer memory;
  std::vector<int32_t> order;

  Cache(DType dtype, int64_t n_tokens) {
    const int64_t n = ceil_div(n_tokens, ops::kPageTokens);
    pages = {.dtype = dtype, .n_pages = n, .kv_lora_rank = kRank, .rope_dim = kRope};
    memory = *Buffer::allocate(n * pages.page_bytes());
    std::memset(memory.data(), 0x3C, static_cast<size_t>(n * pages.page_bytes()));
    pages.data = memory.data();
    for (int64_t i = 0; i < n; ++i) order.push_back(static_cast<int32_t>(n - 1 - i));
  }
  ops::SequenceRows rows(int64_t n_past, int64_t n, ops::AttentionForm form) const {
    return {.n_rows = static_cast<int32_t>(n),
            .n_past = static_cast<int32_t>(n_past),
            .pages = order,
            .form = form};
  }
};

// One generated token after range(0).
void run_absorbed_in(::benchmark::State& state, kernels::cpu::Isa isa, DType stored,
                     int64_t n_heads) {
  const int64_t n_past = state.range(0);
  Context c(isa);
  constexpr int64_t kAllBytes = 192 << 20;
  std::vector<Cache> layers;
  do {
    layers.emplace_back(stored, n_past + 1);
  } while (static_cast<int64_t>(layers.size()) * layers[0].memory.size_bytes() < kAllBytes);
  const auto q = some_floats(n_heads * (kRank + kRope));
  std::vector<float> out(static_cast<size_t>(n_heads * kRank));
  size_t next = 0;
  for (auto _ : state) {
    const Cache& cache = layers[next++ % layers.size()];
    const ops::SequenceRows s[] = {cache.rows(n_past, 1, ops::AttentionForm::absorbed)};
    const Status status =
        ops::mla_absorbed({.q_latent = make_view(q.data(), {1, n_heads, kRank}),
                           .q_rope = make_view(q.data() + n_heads * kRank, {1, n_heads, kRope}),
                           .sequences = s,
                           .pages = cache.pages,
                           .softmax_scale = 0.01f,
                           .out = make_view(out.data(), {1, n_heads, kRank})},
                          c.ctx);
    if (!status.ok()) return state.SkipWithError("mla_absorbed");
  }
  const auto n = static_cast<double>(n_past + 1);
  report(state, n * static_cast<double>(layers[0].pages.token_bytes()),
         2.0 * n_heads * (2 * kRank + kRope) * n);
}

void run_absorbed(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  run_absorbed_in(state, isa, p.activation == DType::f32 ? DType::f32 : DType::bf16, kHeads);
}
void run_absorbed_v3(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  run_absorbed_in(state, isa, p.activation == DType::f32 ? DType::f32 : DType::bf16, kV3Heads);
}
// The cache's 8-bit formats, one for each pair that activations have anyway.
void run_absorbed_codes(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  run_absorbed_in(state, isa, p.activation == DType::i8 ? DType::i8 : DType::f8_e4m3, kHeads);
}

// A prompt of range(0) tokens from its beginning.
void run_expanded(::benchmark::State& state, kernels::cpu::Isa isa, const Pair& p) {
  const int64_t n = state.range(0);
  Context c(isa);
  const Cache cache(p.activation == DType::f32 ? DType::f32 : DType::bf16, n);
  std::vector<Matrix> w_k, w_v;
  std::vector<PackedMatrix> k, v;
  for (int64_t h = 0; h < kHeads; ++h) {
    w_k.emplace_back(p.format, kNope, kRank);
    w_v.emplace_back(p.format, kValue, kRank);
  }
  for (size_t h = 0; h < w_k.size(); ++h) {
    k.push_back(w_k[h].matrix);
    v.push_back(w_v[h].matrix);
  }
  const auto q = some_floats(n * kHeads * (kNope + kRope));
  std::vector<float> out(static_cast<size_t>(n * kHeads * kValue));
  const ops::SequenceRows s[] = {cache.rows(0, n, ops::AttentionForm::expanded)};
  for (auto _ : state) {
    const Status status = ops::mla_expanded({.q = make_view(q.data(), {n, kHeads, kNope + kRope}),
                                             .w_k = k,
                                             .w_v = v,
                                             .activation = p.activation,
                                             .sequences = s,
                                             .pages = cache.pages,
                                             .softmax_scale = 0.01f,
                                             .out = make_view(out.data(), {n, kHeads, kValue}),
                                             .probs = {}},
                                            c.ctx);
    if (!status.ok()) return state.SkipWithError("mla_expanded");
  }
  const auto rows = static_cast<double>(n);
  report(state, rows * static_cast<double>(cache.pages.token_bytes()),
         2.0 * kHeads *
             (rows * rows / 2 * (kNope + kRope + kValue) + rows * kRank * (kNope + kValue)));
}

const int kRegistered = (register_all("absorbed", {1023, 16383}, run_absorbed),
                         register_all("absorbed_v3", {1023, 16383}, run_absorbed_v3),
                         register_all("absorbed_8bit", {1023, 16383}, run_absorbed_codes),
                         register_all("expanded", {512, 2048}, run_expanded), 0);

}  // namespace
}  // namespace exo::bench
