#include "ops/wide_columns.h"

#include <algorithm>
#include <cmath>

namespace exo::ops {

void WideChooser::offer(int64_t column) {
  const auto size = [this](int64_t i) { return std::fabs(x_[list_[i].column]); };
  const float mine = std::fabs(x_[column]);
  int64_t at = *n_;
  if (at == most_) {
    --at;
    left_out_ = std::max(left_out_, std::min(mine, size(at)));
    if (mine <= size(at)) return;
  } else {
    ++*n_;
  }
  for (; at > 0 && size(at - 1) < mine; --at) list_[at] = list_[at - 1];
  list_[at].column = static_cast<int32_t>(column);
  if (*n_ == most_) least_ = size(most_ - 1);
}

RowScale WideChooser::finish(float rest, float largest) {
  std::sort(list_, list_ + *n_,
            [](const WideValue& a, const WideValue& b) { return a.column < b.column; });
  const float top = std::max({rest, left_out_, largest * (127.0f / 32767.0f)});
  return plain_scale(top);
}

void move_wide(const float* x, float inverse, int64_t row, const PackedRows& out) {
  WideValue* list = out.wide_of(row);
  int32_t* sums = out.group_sums + row * (out.n_cols_padded() / kInt4GroupCols);
  for (int32_t i = 0; i < out.n_wide[row]; ++i) {
    const int64_t column = list[i].column;
    list[i].q = static_cast<int32_t>(std::nearbyint(x[column] * inverse));
    sums[column / kInt4GroupCols] -= list[i].q;
    out.line(row, column / 64)[column % 64] = std::byte{0};
  }
}

}  // namespace exo::ops
