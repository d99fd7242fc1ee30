/// Outlier columns of i8 activations (docs/quantisation.md). One scale a row must cover its largest
/// value, and a few columns 20 to 100 times as large as the rest would leave the rest a handful of
/// levels. So values above kWideFactor times the row's mean |x| are wide: they become 16-bit
/// integers of the same scale in a list beside the row, whose int8 place holds 0. The rule looks at
/// one row alone and every sum has one order, so that a row has the same bits everywhere.
#pragma once

#include "tensor/packed.h"

namespace exo::ops {

inline constexpr float kWideFactor = 10.0f;

/// The sum of |x| in its one order: 64 sums, of the columns 64 i + j, which are then added by
/// halves. So many that vectors needn't wait for the one before.
struct SizeSum {
  static constexpr int kParts = 64;
  float parts[kParts] = {};

  float total() {
    for (int width = kParts / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) parts[j] += parts[j + width];
    }
    return parts[0];
  }
};

/// What a row of mean |x| = sum / n_cols may hold without being wide.
inline float wide_limit(float sum, int64_t n_cols) {
  return kWideFactor * (sum / static_cast<float>(n_cols));
}

/// How a row is rounded: q = nearbyint(x * inverse), x = scale * q.
struct RowScale {
  float scale, inverse;
};
/// Of a row without wide columns.
inline RowScale plain_scale(float largest) { return {largest / 127.0f, 127.0f / largest}; }

/// Lists the wide columns of row `row` of `out` (their q not yet), at most max_wide: the largest,
/// of equal ones the first. Every column above the limit is offered, ascending, but those that are
/// no larger than `least` may be left out.
class WideChooser {
 public:
  WideChooser(const float* x, int64_t row, const PackedRows& out)
      : x_(x), list_(out.wide_of(row)), n_(&out.n_wide[row]), most_(max_wide(out.n_cols)) {
    *n_ = 0;
  }
  void offer(int64_t column);
  /// The smallest |x| of a full list, else 0.
  float least() const { return least_; }
  /// rest: the largest |x| of the columns that weren't offered; largest: of all.
  RowScale finish(float rest, float largest);

 private:
  const float* x_;
  WideValue* list_;  // from the largest to the smallest, equal ones in their order
  int32_t* n_;
  int64_t most_;
  float left_out_ = 0;  // the largest of those offered in vain
  float least_ = 0;
};

/// Takes the listed columns out of the int8 row and its group sums, where they stand as
/// nearbyint(x * inverse) (in the row itself cut to 8 bits), and puts them in the list.
void move_wide(const float* x, float inverse, int64_t row, const PackedRows& out);

}  // namespace exo::ops
