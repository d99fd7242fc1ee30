// No operation allocates: every operator new of this program is counted.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels/cpu/isa.h"
#include "ops/testing/packed.h"

namespace {
std::atomic<int64_t> n_allocations{0};
}  // namespace

// Not inlined: seen side by side, malloc and operator delete look like a mismatch to GCC.
[[gnu::noinline]] void* operator new(std::size_t n) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(n == 0 ? 1 : n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t alignment) {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  const auto a = static_cast<std::size_t>(alignment);
  if (void* p = std::aligned_alloc(a, (n + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace exo::kernels::cpu {
namespace {

using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

constexpr int64_t kRows = 20, kHidden = 96, kInter = 48, kHeads = 2, kNope = 16, kRope = 8;
constexpr int64_t kRank = 32, kValue = 16, kPast = 600;

// Memory for one call of every operation, in one weight format.
struct Operands {
  DType activation;
  TestMatrix w, up, down, head_k, head_v;
  std::vector<PackedMatrix> ups, downs, k, v;
  std::vector<float> x = random_floats(kRows * kHidden, 1), y = x, weight = x;
  std::vector<float> q = random_floats(kRows * kHeads * (kRank + kRope), 2), out = q;
  std::vector<float> cos = random_floats(kRows * kRope, 3), sin = cos;
  std::vector<int32_t> ids, positions, expert_ids, pages;
  std::vector<int32_t> chosen = std::vector<int32_t>(2 * kRows);
  std::vector<float> expert_weights, cache;
  ops::LatentPages latent;
  std::vector<ops::SequenceRows> prompt, generated;

  Operands(WeightFormat format, DType act)
      : activation(act),
        w(random_matrix(format, kHidden, kHidden, 1)),
        up(random_matrix(format, 2 * kInter, kHidden, 2, 128, true)),
        down(random_matrix(format, kHidden, kInter, 3)),
        head_k(random_matrix(format, kNope, kRank, 4)),
        head_v(random_matrix(format, kValue, kRank, 5)) {
    ups.assign(3, up.matrix);
    downs.assign(3, down.matrix);
    k.assign(kHeads, head_k.matrix);
    v.assign(kHeads, head_v.matrix);
    for (int32_t i = 0; i < kRows; ++i) {
      ids.push_back(i);
      positions.push_back(i);
      expert_ids.insert(expert_ids.end(), {0, 1 + i % 2});
    }
    expert_weights.assign(expert_ids.size(), 0.5f);
    const auto n_pages = static_cast<int32_t>(ceil_div(kPast + kRows, ops::kPageTokens));
    for (int32_t i = 0; i < n_pages; ++i) pages.push_back(i);
    latent = {.n_pages = n_pages, .kv_lora_rank = kRank, .rope_dim = kRope};
    cache.assign(static_cast<size_t>(n_pages * latent.page_bytes() / 4), 0.5f);
    latent.data = reinterpret_cast<std::byte*>(cache.data());
    ops::SequenceRows s{.n_rows = kRows, .n_past = kPast, .pages = pages};
    prompt = {s};
    s.form = ops::AttentionForm::absorbed;
    generated = {s};
  }
};

void run_rows(Operands& o, ops::OpContext& ctx) {
  const TensorView x = make_view(o.x.data(), {kRows, kHidden});
  const TensorView y = make_view(o.y.data(), {kRows, kHidden});
  ASSERT_TRUE(
      ops::embedding({.table = x, .ids = make_view(o.ids.data(), {kRows}), .out = y}, ctx).ok());
  ASSERT_TRUE(
      ops::rms_norm({.x = x, .weight = make_view(o.weight.data(), {kHidden}), .out = y}, ctx).ok());
  ASSERT_TRUE(ops::add({.x = x, .y = y}, ctx).ok());
  const TensorView cos = make_view(o.cos.data(), {kRows, kRope / 2});
  const TensorView sin = make_view(o.sin.data(), {kRows, kRope / 2});
  ASSERT_TRUE(ops::rope_table({.positions = make_view(o.positions.data(), {kRows}),
                               .inv_freq = make_view(o.weight.data(), {kRope / 2}),
                               .cos = cos,
                               .sin = sin},
                              ctx)
                  .ok());
  ASSERT_TRUE(
      ops::rope({.x = make_view(o.q.data(), {kRows, kHeads, kRope}), .cos = cos, .sin = sin}, ctx)
          .ok());
  ASSERT_TRUE(
      ops::select_experts({.config = {.n_experts = 32, .n_group = 4, .topk_group = 2, .top_k = 2},
                           .logits = make_view(o.x.data(), {kRows, 32}),
                           .bias = make_view(o.weight.data(), {32}),
                           .ids = make_view(o.chosen.data(), {kRows, 2}),
                           .weights = make_view(o.cos.data(), {kRows, 2})},
                          ctx)
          .ok());
}

void run_products(Operands& o, ops::OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const TensorView x = make_view(o.x.data(), {kRows, kHidden});
  const TensorView y = make_view(o.y.data(), {kRows, kHidden});
  const auto packed = ops::pack(x, o.activation, ctx);
  ASSERT_TRUE(packed.ok());
  ASSERT_TRUE(ops::linear({.x = *packed, .w = &o.w.matrix, .out = y}, ctx).ok());
  ASSERT_TRUE(ops::experts({.x = *packed,
                            .gate_up = o.ups,
                            .down = o.downs,
                            .ids = make_view(o.expert_ids.data(), {kRows, 2}),
                            .weights = make_view(o.expert_weights.data(), {kRows, 2}),
                            .shared_gate_up = &o.up.matrix,
                            .shared_down = &o.down.matrix,
                            .out = y},
                           ctx)
                  .ok());
  ASSERT_TRUE(ops::head_linear({.x = make_view(o.q.data(), {kRows, kHeads, kRank}),
                                .w = o.v,
                                .activation = o.activation,
                                .out = make_view(o.out.data(), {kRows, kHeads, kValue})},
                               ctx)
                  .ok());
}

void run_attention(Operands& o, ops::OpContext& ctx) {
  ASSERT_TRUE(ops::store_latent({.latent = make_view(o.q.data(), {kRows, kRank}),
                                 .k_rope = make_view(o.q.data(), {kRows, kRope}),
                                 .sequences = o.prompt,
                                 .pages = o.latent},
                                ctx)
                  .ok());
  ASSERT_TRUE(ops::mla_absorbed({.q_latent = make_view(o.q.data(), {kRows, kHeads, kRank}),
                                 .q_rope = make_view(o.q.data(), {kRows, kHeads, kRope}),
                                 .sequences = o.generated,
                                 .pages = o.latent,
                                 .out = make_view(o.out.data(), {kRows, kHeads, kRank})},
                                ctx)
                  .ok());
  ASSERT_TRUE(ops::mla_expanded({.q = make_view(o.q.data(), {kRows, kHeads, kNope + kRope}),
                                 .w_k = o.k,
                                 .w_v = o.v,
                                 .activation = o.activation,
                                 .sequences = o.prompt,
                                 .pages = o.latent,
                                 .out = make_view(o.out.data(), {kRows, kHeads, kValue}),
                                 .probs = {}},
                                ctx)
                  .ok());
}

TEST(Allocation, NoOperationAllocates) {
  for (auto [format, activation] :
       {std::pair(WeightFormat::bf16, DType::f32), std::pair(WeightFormat::fp8, DType::bf16),
        std::pair(WeightFormat::int8, DType::i8), std::pair(WeightFormat::int4, DType::i8)}) {
    Operands o(format, activation);
    for (Isa isa : supported_isas()) {
      TestContext t(table(isa), 2);
      int64_t counted = -1;
      for (int round = 0; round < 2; ++round) {  // the first may build tables
        const int64_t before = n_allocations.load();
        run_rows(o, t.ctx);
        run_products(o, t.ctx);
        run_attention(o, t.ctx);
        counted = n_allocations.load() - before;
      }
      EXPECT_EQ(counted, 0) << to_string(isa) << " " << to_string(format);
    }
  }
}

TEST(Allocation, IsCounted) {
  const int64_t before = n_allocations.load();
  ::operator delete(::operator new(4));
  EXPECT_EQ(n_allocations.load() - before, 1);
}

}  // namespace
}  // namespace exo::kernels::cpu
