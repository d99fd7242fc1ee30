/// Owning memory. Buffer is one aligned allocation from an Allocator (a device's memory is one more
/// Allocator); Arena hands out pieces of a Buffer and takes them back all at once, so that a
/// forward allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/status.h"
#include "tensor/tensor_view.h"

namespace exo {

/// Alignment of every allocation and of every arena piece: a cache line and a 512-bit vector.
inline constexpr int64_t kAlignment = 64;
constexpr int64_t align_up(int64_t n, int64_t to = kAlignment) { return (n + to - 1) / to * to; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual Device device() const = 0;
  /// kAlignment-aligned (or better) memory, or nullptr. Its contents are unspecified.
  virtual std::byte* allocate(int64_t n_bytes) = 0;
  virtual void release(std::byte* data, int64_t n_bytes) = 0;
};

/// Host memory straight from mmap: zero until touched, huge pages asked for from 2 MiB on.
Allocator& host_allocator();

class Buffer {
 public:
  Buffer() = default;
  static Result<Buffer> allocate(int64_t n_bytes, Allocator& allocator = host_allocator());
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    std::swap(allocator_, other.allocator_);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  Allocator* allocator_ = nullptr;
};

/// A stack of scratch memory over borrowed bytes. Not thread-safe: pieces are taken by the thread
/// that runs the forward, before work is handed to the pool.
///   ArenaScope scope(arena);            // everything taken below is given back at the end of the
///   scope float* x = arena.take<float>(n);    // aligned; nullptr if the arena is too small
class Arena {
 public:
  Arena() = default;
  Arena(std::byte* data, int64_t n_bytes) : data_(data), size_bytes_(n_bytes) {}

  template <typename T>
  T* take(int64_t n) {
    return reinterpret_cast<T*>(take_bytes(n * static_cast<int64_t>(sizeof(T))));
  }
  /// nullptr when it doesn't fit: ops report resource_exhausted with needed and available.
  std::byte* take_bytes(int64_t n_bytes) {
    const int64_t end = used_bytes_ + align_up(n_bytes);
    if (end > peak_bytes_) peak_bytes_ = end;
    if (end > size_bytes_) return nullptr;
    std::byte* p = data_ + used_bytes_;
    used_bytes_ = end;
    return p;
  }
  int64_t size_bytes() const { return size_bytes_; }
  int64_t used_bytes() const { return used_bytes_; }
  /// The most that was ever asked for: what stage 2's plan is tested against.
  int64_t peak_bytes() const { return peak_bytes_; }

 private:
  friend class ArenaScope;
  std::byte* data_ = nullptr;
  int64_t size_bytes_ = 0;
  int64_t used_bytes_ = 0;
  int64_t peak_bytes_ = 0;
};

class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.used_bytes_) {}
  ~ArenaScope() { arena_.used_bytes_ = mark_; }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace exo
