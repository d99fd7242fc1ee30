// Attention and the products per head against the scalar bodies, on every instruction set.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/testing/isas.h"
#include "ops/testing/packed.h"

namespace exo::kernels::cpu {
namespace {

using ops::AttentionForm;
using ops::kPageTokens;
using ops::SequenceRows;
using ops::testing::random_floats;
using ops::testing::random_matrix;
using ops::testing::relative_error;
using ops::testing::TestContext;
using ops::testing::TestMatrix;

struct Dims {
  int64_t heads, nope, rope, rank, value;
};

// A cache of two sequences with shuffled pages; slots that hold no token are poisoned.
struct Cache {
  Dims d;
  DType dtype;
  std::vector<float> memory;
  ops::LatentPages pages;
  std::vector<int32_t> order[2];

  Cache(const Dims& dims, DType type, int64_t n_tokens0, int64_t n_tokens1) : d(dims), dtype(type) {
    const int64_t n0 = ceil_div(n_tokens0, kPageTokens), n1 = ceil_div(n_tokens1, kPageTokens);
    pages = {.dtype = type, .n_pages = n0 + n1 + 2, .kv_lora_rank = d.rank, .rope_dim = d.rope};
    memory.assign(static_cast<size_t>(pages.n_pages * pages.page_bytes() / 4 + 16), std::nanf(""));
    pages.data = reinterpret_cast<std::byte*>(
        align_up(static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory.data()))));
    std::vector<int32_t> all;
    for (int32_t i = 0; i < pages.n_pages; ++i) all.push_back(i);
    std::shuffle(all.begin(), all.end(), std::mt19937(1));
    order[0].assign(all.begin(), all.begin() + n0);
    order[1].assign(all.begin() + n0, all.begin() + n0 + n1);
    fill(0, n_tokens0);
    fill(1, n_tokens1);
  }
  void fill(uint32_t sequence, int64_t n) {
    auto latent = random_floats(n * d.rank, 10 + sequence);
    // Some tokens have an outlier column, which i8 rows keep apart.
    for (int64_t i = 3; i < n; i += 16) latent[static_cast<size_t>(i * d.rank + 5)] = 25.0f;
    const auto rope = random_floats(n * d.rope, 20 + sequence);
    store(sequence, n, latent, rope);
  }
  // Entries [0, n) of a sequence.
  void store(uint32_t sequence, int64_t n, const std::vector<float>& latent,
             const std::vector<float>& rope) {
    TestContext t(ops::reference_table(), 1, 4096);
    const SequenceRows s[] = {rows(sequence, 0, 0, n, AttentionForm::expanded)};
    ASSERT_TRUE(ops::store_latent({.latent = make_view(latent.data(), {n, d.rank}),
                                   .k_rope = make_view(rope.data(), {n, d.rope}),
                                   .sequences = s,
                                   .pages = pages},
                                  t.ctx)
                    .ok());
  }
  SequenceRows rows(size_t sequence, int64_t row_begin, int64_t n_past, int64_t n,
                    AttentionForm form) const {
    return {.row_begin = static_cast<int32_t>(row_begin),
            .n_rows = static_cast<int32_t>(n),
            .n_past = static_cast<int32_t>(n_past),
            .pages = order[sequence],
            .form = form};
  }
};

std::vector<float> absorbed(const ops::OpTable& table, const Cache& c,
                            std::span<const SequenceRows> s, const std::vector<float>& q_latent,
                            const std::vector<float>& q_rope, int64_t n_rows, int n_threads) {
  TestContext t(table, n_threads,
                ops::mla_absorbed_scratch_bytes(n_rows, c.d.heads, c.d.rank, c.d.rope, n_threads));
  std::vector<float> out(static_cast<size_t>(n_rows * c.d.heads * c.d.rank), 7.0f);
  const Status status =
      ops::mla_absorbed({.q_latent = make_view(q_latent.data(), {n_rows, c.d.heads, c.d.rank}),
                         .q_rope = make_view(q_rope.data(), {n_rows, c.d.heads, c.d.rope}),
                         .sequences = s,
                         .pages = c.pages,
                         .softmax_scale = 0.1f,
                         .out = make_view(out.data(), {n_rows, c.d.heads, c.d.rank})},
                        t.ctx);
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

class Mla : public ::testing::TestWithParam<DType> {
 protected:
  // Are generated tokens attended to in bytes? (attention_tiles.h)
  static bool as_bytes(Isa isa) {
    return GetParam() == DType::i8 && (isa == Isa::avx512 || isa == Isa::avx512bf16);
  }
};

TEST_P(Mla, AbsorbedEqualsReferenceForAnyThreads) {
  for (const Dims& d : {Dims{3, 8, 10, 40, 8}, Dims{16, 8, 64, 512, 8}, Dims{21, 8, 16, 64, 8},
                        Dims{5, 8, 32, 192, 8}, Dims{40, 8, 32, 64, 8}}) {
    // 1,100 tokens are 18 pages: 3 ranges.
    const int64_t n0 = 1100, n1 = 65;
    const Cache c(d, GetParam(), n0, n1);
    // Two rows of one sequence, one that is expanded (left alone), one of the other.
    const SequenceRows s[] = {c.rows(0, 0, n0 - 2, 2, AttentionForm::absorbed),
                              c.rows(1, 2, 3, 1, AttentionForm::expanded),
                              c.rows(1, 3, n1 - 1, 1, AttentionForm::absorbed)};
    const auto q_latent = random_floats(4 * d.heads * d.rank, 30);
    const auto q_rope = random_floats(4 * d.heads * d.rope, 31);
    const auto expected = absorbed(ops::reference_table(), c, s, q_latent, q_rope, 4, 1);
    for (Isa isa : isas_to_test()) {
      SCOPED_TRACE(std::string(to_string(isa)) + " heads " + std::to_string(d.heads));
      const auto one = absorbed(table(isa), c, s, q_latent, q_rope, 4, 1);
      // In bf16 products, or (x86 without them) in those of 16-bit integers, which are rounded 2^-8
      // as coarsely: a code is 1/46,000 of a row's norm. Codes are multiplied as bytes, their
      // queries rounded as they are.
      const bool rounded = GetParam() != DType::f32 && isa != Isa::reference && isa != Isa::neon;
      const double bound = as_bytes(isa) && d.rank % 64 == 0 && d.rope % 32 == 0 ? 5e-3
                           : has_bf16(isa)                                       ? 1e-2
                                                                                 : 6e-5;
      EXPECT_LT(relative_error(one, expected), rounded ? bound : 2e-6);
      EXPECT_EQ(one[static_cast<size_t>(2 * d.heads * d.rank)], 7.0f);
      EXPECT_EQ(absorbed(table(isa), c, s, q_latent, q_rope, 4, 2), one);
      EXPECT_EQ(absorbed(table(isa), c, s, q_latent, q_rope, 4, 5), one);
    }
  }
}

// Ten blocks of 16 heads: AMX takes eight together.
TEST_P(Mla, AbsorbedOfManyHeadsIsThatOfFew) {
  const Dims all{150, 8, 32, 64, 8}, few{30, 8, 32, 64, 8};
  const int64_t n = 200;
  const Cache c(all, GetParam(), n, 1), same(few, GetParam(), n, 1);
  const auto q_latent = random_floats(all.heads * all.rank, 40);
  const auto q_rope = random_floats(all.heads * all.rope, 41);
  for (Isa isa : isas_to_test()) {
    SCOPED_TRACE(std::string(to_string(isa)));
    const SequenceRows s[] = {c.rows(0, 0, n - 1, 1, AttentionForm::absorbed)};
    const auto out = absorbed(table(isa), c, s, q_latent, q_rope, 1, 1);
    for (int64_t head = 0; head < all.heads; head += few.heads) {
      const auto part = [&](const std::vector<float>& v, int64_t width) {
        return std::vector<float>(v.begin() + head * width, v.begin() + (head + few.heads) * width);
      };
      EXPECT_EQ(
          absorbed(table(isa), same, s, part(q_latent, all.rank), part(q_rope, all.rope), 1, 1),
          part(out, all.rank));
    }
  }
}

// What f32 can tell, 16-bit integers must: scores far apart, entries and queries that are huge,
// tiny or zero beside others, and an entry that is no number.
TEST_P(Mla, AbsorbedKeepsTheRangeOfF32) {
  const Dims d{16, 8, 64, 512, 8};
  const int64_t n = 71;  // an odd number in the last page
  for (const float size : {1e-20f, 1.0f, 1e25f}) {
    Cache c(d, GetParam(), n, 1);
    auto latent = random_floats(n * d.rank, 50), rope = random_floats(n * d.rope, 51);
    for (int64_t t = 0; t < n; ++t) {
      const float factor = t % 5 == 0 ? 0.0f : t % 5 == 1 ? 1e-3f : 1.0f;
      for (int64_t i = 0; i < d.rank; ++i)
        latent[static_cast<size_t>(t * d.rank + i)] *= factor * size;
      for (int64_t i = 0; i < d.rope; ++i)
        rope[static_cast<size_t>(t * d.rope + i)] *= factor * size;
    }
    c.store(0, n, latent, rope);
    const SequenceRows s[] = {c.rows(0, 0, n - 1, 1, AttentionForm::absorbed)};
    auto q_latent = random_floats(d.heads * d.rank, 52),
         q_rope = random_floats(d.heads * d.rope, 53);
    for (float& v : q_latent) v /= size;
    for (float& v : q_rope) v /= size;
    std::fill_n(q_latent.begin(), d.rank, 0.0f);  // a head whose query is zero
    // And one whose query is an entry: no product of two rows of such norms is larger.
    for (int64_t i = 0; i < d.rank; ++i)
      q_latent[static_cast<size_t>(d.rank + i)] =
          latent[static_cast<size_t>(7 * d.rank + i)] / size / size;
    for (int64_t i = 0; i < d.rope; ++i)
      q_rope[static_cast<size_t>(d.rope + i)] =
          rope[static_cast<size_t>(7 * d.rope + i)] / size / size;
    const auto expected = absorbed(ops::reference_table(), c, s, q_latent, q_rope, 1, 1);
    for (Isa isa : isas_to_test()) {
      // bf16 units take denormals as zero, which products of the tiniest are.
      if (has_bf16(isa)) continue;
      SCOPED_TRACE(std::string(to_string(isa)) + " size " + std::to_string(size));
      // A code is 1/65,500 of the weights of a page's 64 keys, which are alike here. Scores of
      // queries in bytes are off by 1.5%.
      EXPECT_LT(relative_error(absorbed(table(isa), c, s, q_latent, q_rope, 1, 1), expected),
                as_bytes(isa) ? 2e-2 : 1e-3);
    }
    if (c.pages.has_codes()) {
      c.pages.scales(c.order[0][1], 5)[0] = std::nanf("");
    } else if (c.dtype == DType::bf16) {
      *reinterpret_cast<bf16*>(c.pages.entry(c.order[0][1], 5)) = to_bf16(std::nanf(""));
    } else {
      *reinterpret_cast<float*>(c.pages.entry(c.order[0][1], 5)) = std::nanf("");
    }
    for (Isa isa : isas_to_test()) {
      if (has_bf16(isa)) continue;
      for (float v : absorbed(table(isa), c, s, q_latent, q_rope, 1, 1)) ASSERT_TRUE(std::isnan(v));
    }
  }
}

// Many small weights beside a large one are not lost: what rounding takes of one is given to the
// next. One key has the score 0 and the others, in 3 pages, -6.5: each is a 665th of the weight
// that a page's codes are a 255th of, and together they are a fifth of the sum.
TEST_P(Mla, AbsorbedKeepsManySmallWeights) {
  const Dims d{16, 8, 64, 128, 8};
  const int64_t n = 3 * kPageTokens;
  Cache c(d, GetParam(), n, 1);
  std::vector<float> latent(static_cast<size_t>(n * d.rank), 0.0f),
      rope(static_cast<size_t>(n * d.rope), 0.0f);
  for (int64_t t = 0; t < n; ++t) {
    // The large key's value is column 0, all others' column 1.
    latent[static_cast<size_t>(t * d.rank + (t == 5 ? 0 : 1))] = 1.0f;
    rope[static_cast<size_t>(t * d.rope)] = t == 5 ? 0.0f : -1.0f;
  }
  c.store(0, n, latent, rope);
  std::vector<float> q_latent(static_cast<size_t>(d.heads * d.rank), 0.0f),
      q_rope(static_cast<size_t>(d.heads * d.rope), 0.0f);
  for (int64_t h = 0; h < d.heads; ++h) q_rope[static_cast<size_t>(h * d.rope)] = 65.0f;
  const SequenceRows s[] = {c.rows(0, 0, n - 1, 1, AttentionForm::absorbed)};
  const double small = std::exp(-6.5) * static_cast<double>(n - 1);
  for (Isa isa : isas_to_test()) {
    SCOPED_TRACE(to_string(isa));
    const auto out = absorbed(table(isa), c, s, q_latent, q_rope, 1, 1);
    for (int64_t h = 0; h < d.heads; ++h) {
      const float* row = out.data() + h * d.rank;
      EXPECT_NEAR(row[0], 1 / (1 + small), 4e-3);
      EXPECT_NEAR(row[1], small / (1 + small), 4e-3);
    }
  }
}

struct Expanded {
  const Cache& c;
  std::vector<TestMatrix> w_k, w_v;
  std::vector<PackedMatrix> k_views, v_views;
  DType activation;
  std::vector<float> q;  // of the whole first sequence

  Expanded(const Cache& cache, WeightFormat format, DType act, int64_t n_tokens)
      : c(cache), activation(act) {
    for (uint32_t h = 0; h < c.d.heads; ++h) {
      w_k.push_back(random_matrix(format, c.d.nope, c.d.rank, 40 + h));
      w_v.push_back(random_matrix(format, c.d.value, c.d.rank, 80 + h));
    }
    for (size_t h = 0; h < w_k.size(); ++h) {
      k_views.push_back(w_k[h].matrix);
      v_views.push_back(w_v[h].matrix);
    }
    q = random_floats(n_tokens * c.d.heads * (c.d.nope + c.d.rope), 33, 0.5f);
  }
  // Positions [begin, begin + n) of the first sequence.
  std::vector<float> run(const ops::OpTable& table, int64_t begin, int64_t n, int n_threads) const {
    const int64_t qk = c.d.nope + c.d.rope;
    TestContext t(table, n_threads,
                  ops::mla_expanded_scratch_bytes(n, c.d.heads, c.d.nope, c.d.rope, c.d.value,
                                                  c.d.rank, n_threads));
    std::vector<float> out(static_cast<size_t>(n * c.d.heads * c.d.value));
    const SequenceRows s[] = {c.rows(0, 0, begin, n, AttentionForm::expanded)};
    const Status status =
        ops::mla_expanded({.q = make_view(q.data() + begin * c.d.heads * qk, {n, c.d.heads, qk}),
                           .w_k = k_views,
                           .w_v = v_views,
                           .activation = activation,
                           .sequences = s,
                           .pages = c.pages,
                           .softmax_scale = 0.1f,
                           .out = make_view(out.data(), {n, c.d.heads, c.d.value}),
                           .probs = {}},
                          t.ctx);
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }
};

TEST_P(Mla, ExpandedEqualsReferenceWhateverTheChunksAndThreads) {
  const int64_t n = 200;
  for (const Dims& d : {Dims{3, 24, 10, 40, 18}, Dims{5, 40, 16, 64, 80}}) {
    const Cache c(d, GetParam(), n, 10);
    for (auto [format, activation] :
         {std::pair(WeightFormat::f32, DType::f32), std::pair(WeightFormat::bf16, DType::f32),
          std::pair(WeightFormat::bf16, DType::bf16), std::pair(WeightFormat::int8, DType::i8)}) {
      const Expanded e(c, format, activation, n);
      const auto expected = e.run(ops::reference_table(), 0, n, 1);
      for (Isa isa : isas_to_test()) {
        SCOPED_TRACE(std::string(to_string(isa)) + " " + std::string(to_string(activation)));
        const auto whole = e.run(table(isa), 0, n, 1);
        // Unless everything is f32, attention is in bf16 products or, on x86 without them, in those
        // of 16-bit integers: a score is as far off as 1e-5 of its row's and its key's norms. The
        // products of activations in bf16 are rounded themselves.
        const bool rounded =
            activation == DType::bf16 || (has_bf16(isa) && activation != DType::f32);
        const bool words = activation == DType::i8 && isa != Isa::reference && isa != Isa::neon;
        EXPECT_LT(relative_error(whole, expected), rounded ? 1e-2 : words ? 1e-4 : 2e-6);
        EXPECT_EQ(e.run(table(isa), 0, n, 2), whole);
        EXPECT_EQ(e.run(table(isa), 0, n, 7), whole);
        if (activation == DType::bf16) continue;
        for (auto [chunk, begin] : {std::array<int64_t, 2>{1, 120}, {7, 0}, {64, 0}, {130, 0}}) {
          std::vector<float> pieces;
          const int64_t end = chunk == 1 ? begin + 16 : n;
          for (int64_t at = begin; at < end; at += chunk) {
            const auto piece = e.run(table(isa), at, std::min(chunk, n - at), 1);
            pieces.insert(pieces.end(), piece.begin(), piece.end());
          }
          const int64_t row = d.heads * d.value;
          EXPECT_EQ(pieces,
                    std::vector<float>(whole.begin() + begin * row, whole.begin() + end * row))
              << "chunks of " << chunk;
        }
      }
    }
  }
}

TEST_P(Mla, AFutureNotANumberIsNotSeen) {
  const Dims d{2, 24, 10, 40, 32};
  const int64_t n = 100;
  Cache c(d, GetParam(), n, 1);
  const Expanded exact(c, WeightFormat::f32, DType::f32, n);
  const Expanded rounded(c, WeightFormat::int8, DType::i8, n);
  std::vector<std::vector<float>> clean, clean_rounded;
  for (Isa isa : isas_to_test()) {
    clean.push_back(exact.run(table(isa), 0, n, 1));
    clean_rounded.push_back(rounded.run(table(isa), 0, n, 1));
  }
  std::byte* entry = c.pages.entry(c.order[0][1], 20);  // token 84
  if (c.pages.has_codes()) {
    c.pages.scales(c.order[0][1], 20)[0] = std::nanf("");
  } else if (c.dtype == DType::bf16) {
    *reinterpret_cast<bf16*>(entry) = to_bf16(std::nanf(""));
  } else {
    *reinterpret_cast<float*>(entry) = std::nanf("");
  }
  size_t i = 0;
  for (Isa isa : isas_to_test()) {
    SCOPED_TRACE(to_string(isa));
    const auto out = exact.run(table(isa), 0, n, 1), out_rounded = rounded.run(table(isa), 0, n, 1);
    const auto before = static_cast<size_t>(84 * d.heads * d.value);
    for (size_t j = before; j < out.size(); ++j)
      EXPECT_TRUE(std::isnan(out[j]) && std::isnan(out_rounded[j]));
    const auto seen = [&](const std::vector<float>& v) {
      return std::vector<float>(v.begin(), v.begin() + static_cast<int64_t>(before));
    };
    EXPECT_EQ(seen(out), seen(clean[i]));
    // Such a page goes in f32, not in tiles or words.
    EXPECT_LT(relative_error(seen(out_rounded), seen(clean_rounded[i++])), 1e-2);
  }
}

INSTANTIATE_TEST_SUITE_P(Pages, Mla,
                         ::testing::Values(DType::f32, DType::bf16, DType::i8, DType::f8_e4m3),
                         [](const auto& p) { return std::string(to_string(p.param)); });

TEST(HeadLinear, EqualsReferenceForAnyThreadsAndRows) {
  for (auto [format, activation] :
       {std::pair(WeightFormat::f32, DType::f32), std::pair(WeightFormat::bf16, DType::bf16),
        std::pair(WeightFormat::fp8, DType::f32), std::pair(WeightFormat::int8, DType::i8),
        std::pair(WeightFormat::int4, DType::i8)}) {
    for (auto [n_rows, heads, n_in, n_out] :
         {std::array<int64_t, 4>{1, 3, 40, 24}, std::array<int64_t, 4>{7, 16, 128, 72},
          std::array<int64_t, 4>{100, 2, 33, 130}}) {
      std::vector<TestMatrix> w;
      std::vector<PackedMatrix> views;
      for (uint32_t h = 0; h < heads; ++h) w.push_back(random_matrix(format, n_out, n_in, h));
      for (const TestMatrix& m : w) views.push_back(m.matrix);
      auto x = random_floats(n_rows * heads * (n_in + 9), 50);
      for (int64_t i = 0; i < n_rows * heads; i += 2)  // outlier columns, which i8 rows keep apart
        x[static_cast<size_t>(i * (n_in + 9) + 5)] *= 90.0f;
      const TensorView view = make_view(x.data(), {n_rows, heads, n_in + 9}).columns(0, n_in);
      const auto run = [&](const ops::OpTable& t, int n_threads) {
        TestContext c(t, n_threads,
                      ops::head_linear_scratch_bytes(n_rows, heads, n_in, n_out, n_threads));
        std::vector<float> out(static_cast<size_t>(n_rows * heads * n_out));
        const Status s = ops::head_linear({.x = view,
                                           .w = views,
                                           .activation = activation,
                                           .out = make_view(out.data(), {n_rows, heads, n_out})},
                                          c.ctx);
        EXPECT_TRUE(s.ok()) << s.message();
        return out;
      };
      const auto expected = run(ops::reference_table(), 1);
      for (Isa isa : isas_to_test()) {
        SCOPED_TRACE(to_string(isa));
        const auto one = run(table(isa), 1);
        if (activation == DType::i8) {
          EXPECT_EQ(one, expected);
        }
        EXPECT_LT(relative_error(one, expected), 2e-6);
        EXPECT_EQ(run(table(isa), 2), one);
        EXPECT_EQ(run(table(isa), 9), one);
      }
    }
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
