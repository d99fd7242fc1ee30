#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "ops/checks.h"
#include "ops/reference/bodies.h"
#include "ops/reference/matmul.h"

namespace exo::ops::reference {
namespace {

float entry_element(const LatentPages& pages, const SequenceRows& s, int64_t token, int64_t i) {
  const int32_t page = s.pages[static_cast<size_t>(token / kPageTokens)];
  const std::byte* entry = pages.entry(page, token % kPageTokens);
  const bool is_rope = i >= pages.kv_lora_rank;
  if (is_rope && pages.has_codes())
    return to_f32(
        reinterpret_cast<const bf16*>(entry + pages.rope_offset())[i - pages.kv_lora_rank]);
  if (pages.has_codes()) {
    const float scale = pages.scales(page, token % kPageTokens)[i / kLatentPartCols];
    return scale * (pages.dtype == DType::i8 ? static_cast<float>(static_cast<int8_t>(entry[i]))
                                             : to_f32(reinterpret_cast<const f8_e4m3*>(entry)[i]));
  }
  return pages.dtype == DType::bf16 ? to_f32(reinterpret_cast<const bf16*>(entry)[i])
                                    : reinterpret_cast<const float*>(entry)[i];
}

// n values as codes of i8 or f8_e4m3; returns their scale.
float store_codes(const float* x, int64_t n, DType dtype, std::byte* codes) {
  float largest = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    largest = std::max(largest, std::fabs(x[i]));
  }
  if (!finite || largest < 1e-30f) {
    std::fill_n(codes, n, std::byte{0});
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float top = dtype == DType::i8 ? 127.0f : 448.0f, inverse = top / largest;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = dtype == DType::i8
                   ? static_cast<std::byte>(static_cast<int8_t>(std::nearbyint(x[i] * inverse)))
                   : static_cast<std::byte>(to_f8_e4m3(x[i] * inverse).bits);
  }
  return largest / top;
}

void store_values(const float* x, int64_t n, DType dtype, std::byte* to) {
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::bf16) {
      reinterpret_cast<bf16*>(to)[i] = to_bf16(x[i]);
    } else {
      reinterpret_cast<float*>(to)[i] = x[i];
    }
  }
}

// A running softmax-weighted sum over pages (the "online softmax" of Milakov & Gimelshein 2018):
// after each page, sum = sum_t exp(score[t] - largest), out = sum_t exp(score[t] - largest) *
// value[t].
struct Running {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0;

  // Turns the scores of a page into weights and scales what was summed before.
  void add_page(std::span<float> scores, float* out, int64_t n_out) {
    float top = largest;
    for (float score : scores) top = std::isnan(score) || score > top ? score : top;
    const float keep = sum == 0 ? 0.0f : std::exp(largest - top);
    largest = top;
    sum *= keep;
    for (int64_t j = 0; j < n_out; ++j) out[j] = keep == 0 ? 0.0f : out[j] * keep;
    for (float& score : scores) sum += score = std::exp(score - top);
  }
};

int64_t visible_in_page(int64_t page, int64_t position) {
  return std::min(kPageTokens, position + 1 - page * kPageTokens);
}

}  // namespace

Status store_latent(const StoreLatentArgs& args, OpContext&) {
  const LatentPages& pages = args.pages;
  for (const SequenceRows& s : args.sequences) {
    for (int64_t r = 0; r < s.n_rows; ++r) {
      const int64_t token = s.n_past + r, slot = token % kPageTokens;
      const int32_t page = s.pages[static_cast<size_t>(token / kPageTokens)];
      std::byte* entry = pages.entry(page, slot);
      const float* latent = args.latent.row<float>(s.row_begin + r);
      store_values(args.k_rope.row<float>(s.row_begin + r), pages.rope_dim, pages.rope_dtype(),
                   entry + pages.rope_offset());
      if (!pages.has_codes()) store_values(latent, pages.kv_lora_rank, pages.dtype, entry);
      for (int64_t part = 0; part < pages.n_scales(); ++part) {
        const int64_t first = part * kLatentPartCols;
        pages.scales(page, slot)[part] =
            store_codes(latent + first, std::min(kLatentPartCols, pages.kv_lora_rank - first),
                        pages.dtype, entry + first);
      }
    }
  }
  return ok_status();
}

Status mla_absorbed(const MlaAbsorbedArgs& args, OpContext&) {
  const LatentPages& pages = args.pages;
  const int64_t rank = pages.kv_lora_rank;
  std::array<float, kPageTokens> scores;
  for (const SequenceRows& s : args.sequences) {
    if (s.form != AttentionForm::absorbed) continue;
    for (int64_t r = 0; r < s.n_rows; ++r) {
      const int64_t row = s.row_begin + r, position = s.n_past + r;
      for (int64_t h = 0; h < args.out.dim(1); ++h) {
        const float* q_latent = args.q_latent.row<float>(row) + h * args.q_latent.stride(1);
        const float* q_rope = args.q_rope.row<float>(row) + h * args.q_rope.stride(1);
        float* out = args.out.row<float>(row) + h * args.out.stride(1);
        Running running;
        for (int64_t page = 0; page <= position / kPageTokens; ++page) {
          const int64_t n = visible_in_page(page, position), first = page * kPageTokens;
          for (int64_t t = 0; t < n; ++t) {
            float dot = 0;
            for (int64_t i = 0; i < rank; ++i)
              dot += q_latent[i] * entry_element(pages, s, first + t, i);
            for (int64_t i = 0; i < pages.rope_dim; ++i)
              dot += q_rope[i] * entry_element(pages, s, first + t, rank + i);
            scores[static_cast<size_t>(t)] = dot * args.softmax_scale;
          }
          running.add_page({scores.data(), static_cast<size_t>(n)}, out, rank);
          for (int64_t t = 0; t < n; ++t) {
            for (int64_t i = 0; i < rank; ++i)
              out[i] += scores[static_cast<size_t>(t)] * entry_element(pages, s, first + t, i);
          }
        }
        for (int64_t i = 0; i < rank; ++i) out[i] /= running.sum;
      }
    }
  }
  return ok_status();
}

namespace {

// One page of one head's keys and values.
struct ExpandedPage {
  float* k = nullptr;       // [kPageTokens, qk_nope_head_dim + rope_dim]
  float* v = nullptr;       // [kPageTokens, v_head_dim]
  float* latent = nullptr;  // [kv_lora_rank]
  PackedRows packed;        // [kPageTokens, kv_lora_rank]
};

void expand_page(const MlaExpandedArgs& args, const SequenceRows& s, int64_t page, int64_t head,
                 const ExpandedPage& e) {
  const LatentPages& pages = args.pages;
  const int64_t rank = pages.kv_lora_rank, qk = args.q.dim(2), v_dim = args.out.dim(2);
  const int64_t first = page * kPageTokens, n_tokens = int64_t{s.n_past} + s.n_rows;
  const int64_t n = std::min(kPageTokens, n_tokens - first);
  for (int64_t t = 0; t < n; ++t) {
    for (int64_t i = 0; i < rank; ++i) e.latent[i] = entry_element(pages, s, first + t, i);
    pack_row(e.latent, t, e.packed);
    for (int64_t i = 0; i < pages.rope_dim; ++i)
      e.k[t * qk + qk - pages.rope_dim + i] = entry_element(pages, s, first + t, rank + i);
  }
  matmul_rows(e.packed, 0, n, args.w_k[static_cast<size_t>(head)], e.k, qk);
  matmul_rows(e.packed, 0, n, args.w_v[static_cast<size_t>(head)], e.v, v_dim);
}

// scores[t] of one query with the n first keys of a page.
void score_page(const float* q, const ExpandedPage& e, int64_t qk, int64_t n, float scale,
                float* scores) {
  for (int64_t t = 0; t < n; ++t) {
    float dot = 0;
    for (int64_t i = 0; i < qk; ++i) dot += q[i] * e.k[t * qk + i];
    scores[t] = dot * scale;
  }
}

void attend_page(const MlaExpandedArgs& args, const SequenceRows& s, int64_t page, int64_t head,
                 const ExpandedPage& e, Running* running) {
  const int64_t qk = args.q.dim(2), v_dim = args.out.dim(2);
  std::array<float, kPageTokens> scores;
  for (int64_t r = 0; r < s.n_rows; ++r) {
    const int64_t n = visible_in_page(page, s.n_past + r);
    if (n <= 0) continue;
    const float* q = args.q.row<float>(s.row_begin + r) + head * args.q.stride(1);
    float* out = args.out.row<float>(s.row_begin + r) + head * args.out.stride(1);
    score_page(q, e, qk, n, args.softmax_scale, scores.data());
    running[r].add_page({scores.data(), static_cast<size_t>(n)}, out, v_dim);
    for (int64_t t = 0; t < n; ++t) {
      for (int64_t i = 0; i < v_dim; ++i)
        out[i] += scores[static_cast<size_t>(t)] * e.v[t * v_dim + i];
    }
  }
}

// A second pass over the keys, once the rows' maxima and sums are known.
void write_probs(const MlaExpandedArgs& args, const SequenceRows& s, int64_t head,
                 const ExpandedPage& e, const Running* running) {
  const int64_t n_tokens = int64_t{s.n_past} + s.n_rows, qk = args.q.dim(2);
  for (int64_t page = 0; page < ceil_div(n_tokens, kPageTokens); ++page) {
    expand_page(args, s, page, head, e);
    for (int64_t r = 0; r < s.n_rows; ++r) {
      float* probs = args.probs.row<float>(head) + (s.row_begin + r) * args.probs.stride(1) +
                     page * kPageTokens;
      const int64_t in_page = std::min(kPageTokens, n_tokens - page * kPageTokens);
      std::fill_n(probs, in_page, 0.0f);
      const int64_t n = visible_in_page(page, s.n_past + r);
      if (n <= 0) continue;
      const float* q = args.q.row<float>(s.row_begin + r) + head * args.q.stride(1);
      score_page(q, e, qk, n, args.softmax_scale, probs);
      for (int64_t t = 0; t < n; ++t)
        probs[t] = std::exp(probs[t] - running[r].largest) / running[r].sum;
    }
  }
}

}  // namespace

Status mla_expanded(const MlaExpandedArgs& args, OpContext& ctx) {
  ArenaScope scope(*ctx.arena);
  const int64_t n_rows = args.q.dim(0), v_dim = args.out.dim(2), rank = args.pages.kv_lora_rank;
  ExpandedPage e;
  e.k = ctx.arena->take<float>(kPageTokens * args.q.dim(2));
  e.v = ctx.arena->take<float>(kPageTokens * v_dim);
  e.latent = ctx.arena->take<float>(rank);
  auto* running = ctx.arena->take<Running>(n_rows);
  if (e.k == nullptr || e.v == nullptr || e.latent == nullptr || running == nullptr)
    return scratch_exhausted("mla_expanded",
                             kPageTokens * (args.q.dim(2) + v_dim) * 4 + rank * 4 + n_rows * 8,
                             *ctx.arena);
  EXO_ASSIGN_OR_RETURN(e.packed, take_packed_rows(args.activation, kPageTokens, rank, *ctx.arena));
  for (const SequenceRows& s : args.sequences) {
    if (s.form != AttentionForm::expanded) continue;
    const int64_t n_pages = ceil_div(int64_t{s.n_past} + s.n_rows, kPageTokens);
    for (int64_t head = 0; head < args.q.dim(1); ++head) {
      std::fill_n(running, s.n_rows, Running{});
      for (int64_t page = 0; page < n_pages; ++page) {
        expand_page(args, s, page, head, e);
        attend_page(args, s, page, head, e, running);
      }
      for (int64_t r = 0; r < s.n_rows; ++r) {
        float* out = args.out.row<float>(s.row_begin + r) + head * args.out.stride(1);
        for (int64_t i = 0; i < v_dim; ++i) out[i] /= running[r].sum;
      }
      if (!args.probs.empty()) write_probs(args, s, head, e, running);
    }
  }
  return ok_status();
}

}  // namespace exo::ops::reference
