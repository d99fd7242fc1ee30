/// The wide values of i8 rows (ops/wide_columns.h) times their columns of integer weights, added to
/// what a kernel has written: an exact int32 sum for each output (at most max_wide * 32767 * 127),
/// scaled and added for itself, so that the order of rounding is the reference's everywhere.
#include "kernels/cpu/matmul.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/wide_columns.cc"
#include "kernels/cpu/highway_targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace exo::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int kOutputVectors = 16 / kLanes;
// Vectors of outputs that are summed side by side.
constexpr int kSums = HWY_CAP_GE512 || !HWY_CAP_GE256 ? 8 : 4;

// Where a column lies in every panel: 4 bytes of a line are 4 columns of an output.
struct Int8Column {
  int64_t line;
  int shift;

  explicit Int8Column(int64_t c)
      : line(c / 64 * 1024 + c % 64 / 4 * kTileLineBytes),
        shift(static_cast<int>(24 - c % 4 * 8)) {}
  // Outputs kLanes * j ..
  HWY_INLINE VI Load(const std::byte* panel, int j) const {
    const auto* words = reinterpret_cast<const int32_t*>(panel + line) + j * kLanes;
    return hn::ShiftRight<24>(hn::ShiftLeftSame(hn::LoadU(DI(), words), shift));
  }
};

struct Int4Column {
  int64_t line, multipliers;
  int shift;

  explicit Int4Column(int64_t c) {
    const int64_t tile = c / 128 * tile_bytes(WeightFormat::int4), in_tile = c % 128;
    line = tile + kTileLineBytes + in_tile % 64 / 4 * kTileLineBytes;
    multipliers = tile + in_tile / kInt4GroupCols * 16;
    shift = static_cast<int>(in_tile % 4 * 8 + in_tile / 64 * 4);
  }
  HWY_INLINE VI Load(const std::byte* panel, int j) const {
    const DI di;
    const hn::Rebind<int8_t, DI> d8;
    const auto* words = reinterpret_cast<const int32_t*>(panel + line) + j * kLanes;
    const VI q = hn::And(hn::ShiftRightSame(hn::LoadU(di, words), shift), hn::Set(di, 15));
    const auto* m = reinterpret_cast<const int8_t*>(panel + multipliers) + j * kLanes;
    return hn::Mul(hn::PromoteTo(di, hn::LoadU(d8, m)), hn::Sub(q, hn::Set(di, 8)));
  }
};

// One row with kPanels panels.
template <class Column, int kPanels>
HWY_INLINE void AddWideToPanels(const MatmulTask& task, int64_t r, int64_t first) {
  const DF df;
  const DI di;
  const PackedMatrix& w = *task.w;
  const int64_t row = task.row_begin + r, stride = w.panel_bytes();
  const WideValue* list = task.x->wide_of(row);
  const VF x_scale = hn::Set(df, task.x->scales[row]);
  VI sum[kPanels][kOutputVectors];
  EXO_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    EXO_UNROLL
    for (int j = 0; j < kOutputVectors; ++j) sum[p][j] = hn::Zero(di);
  }
  for (int32_t i = 0; i < task.x->n_wide[row]; ++i) {
    const Column column(list[i].column);
    const VI q = hn::Set(di, list[i].q);
    const std::byte* panel = w.panel(first);
    EXO_UNROLL
    for (int p = 0; p < kPanels; ++p, panel += stride) {
      EXO_UNROLL
      for (int j = 0; j < kOutputVectors; ++j)
        sum[p][j] = hn::Add(sum[p][j], hn::Mul(column.Load(panel, j), q));
    }
  }
  EXO_UNROLL
  for (int p = 0; p < kPanels; ++p) {
    float* out = task.out + r * task.out_stride + (first + p - task.panel_begin) * kPanelRows;
    EXO_UNROLL
    for (int j = 0; j < kOutputVectors; ++j, out += kLanes) {
      const int64_t output = (first + p) * kPanelRows + j * kLanes;
      const VF y = hn::Mul(hn::ConvertTo(df, sum[p][j]),
                           hn::Mul(x_scale, hn::LoadU(df, w.row_scales + output)));
      if (output + kLanes <= w.n_out) {
        hn::StoreU(hn::Add(hn::LoadU(df, out), y), df, out);
      } else if (const int64_t n = w.n_out - output; n > 0) {
        StoreTail(hn::Add(LoadTail(out, n), y), out, n);
      }
    }
  }
}

template <class Column>
HWY_INLINE void AddWideOf(const MatmulTask& task) {
  constexpr int kPanels = kSums / kOutputVectors;
  const int64_t end = task.panel_begin + task.n_panels;
  for (int64_t r = 0; r < task.n_rows; ++r) {
    if (task.x->n_wide[task.row_begin + r] == 0) continue;
    int64_t p = task.panel_begin;
    for (; p + kPanels <= end; p += kPanels) AddWideToPanels<Column, kPanels>(task, r, p);
    for (; p < end; ++p) AddWideToPanels<Column, 1>(task, r, p);
  }
}

void AddWide(const MatmulTask& task) {
  if (task.w->format == WeightFormat::int8) return AddWideOf<Int8Column>(task);
  AddWideOf<Int4Column>(task);
}

MatmulKernel FindAddWide() { return AddWide; }

}  // namespace HWY_NAMESPACE
}  // namespace exo::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace exo::kernels::cpu {

MatmulKernel find_add_wide(Isa isa) { return EXO_ON_ISA(isa, FindAddWide()); }

}  // namespace exo::kernels::cpu
#endif
