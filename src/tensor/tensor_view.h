/// TensorView: a non-owning, strided, typed view of memory on some device. Ops take and return
/// nothing else.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "tensor/dtype.h"

namespace exo {

enum class DeviceKind : uint8_t { cpu, cuda };
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

namespace detail {
template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<f8_e4m3> {
  static constexpr DType value = DType::f8_e4m3;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
}  // namespace detail

inline constexpr int kMaxRank = 4;

struct TensorView {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};    ///< elements; [0, rank)
  std::array<int64_t, kMaxRank> strides{};  ///< elements, not bytes
  Device device;

  bool empty() const { return data == nullptr; }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
  int64_t stride(int i) const { return strides[static_cast<size_t>(i)]; }
  int64_t n_elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim(i);
    return n;
  }
  bool is_contiguous() const;
  bool has_shape(std::initializer_list<int64_t> expected) const;

  /// The first element, as T. Precondition: T is the view's dtype.
  template <typename T>
  T* ptr() const {
    assert(detail::DTypeOf<T>::value == dtype);
    return reinterpret_cast<T*>(data);
  }
  /// Row i of the leading dimension.
  template <typename T>
  T* row(int64_t i) const {
    return ptr<T>() + i * strides[0];
  }
  /// Rows [begin, begin + n) of the leading dimension.
  TensorView rows(int64_t begin, int64_t n) const;
  /// Columns [begin, begin + n) of the last dimension.
  TensorView columns(int64_t begin, int64_t n) const;

  /// "f32 [3, 128]"
  std::string describe() const;
};

/// A contiguous view. `data` may be const: ops never write through an input.
template <typename T>
TensorView make_view(const T* data, std::initializer_list<int64_t> shape) {
  TensorView v;
  v.data = reinterpret_cast<std::byte*>(const_cast<T*>(data));
  v.dtype = detail::DTypeOf<T>::value;
  for (int64_t d : shape) v.shape[static_cast<size_t>(v.rank++)] = d;
  int64_t stride = 1;
  for (int i = v.rank - 1; i >= 0; --i) {
    v.strides[static_cast<size_t>(i)] = stride;
    stride *= v.shape[static_cast<size_t>(i)];
  }
  return v;
}

}  // namespace exo
