#include "tensor/buffer.h"

#include <fmt/core.h>

#include "base/os.h"

namespace exo {
namespace {

class HostAllocator final : public Allocator {
 public:
  Device device() const override { return {}; }

  std::byte* allocate(int64_t n_bytes) override {
    return map_pages(static_cast<uint64_t>(n_bytes));
  }
  void release(std::byte* data, int64_t n_bytes) override {
    unmap_pages(data, static_cast<uint64_t>(n_bytes));
  }
};

}  // namespace

Allocator& host_allocator() {
  static HostAllocator allocator;
  return allocator;
}

Result<Buffer> Buffer::allocate(int64_t n_bytes, Allocator& allocator) {
  Buffer buffer;
  if (n_bytes <= 0) return buffer;
  buffer.data_ = allocator.allocate(n_bytes);
  if (buffer.data_ == nullptr) {
    return resource_exhausted(
        fmt::format("cannot allocate {} bytes of memory; use a smaller --context, another "
                    "--format, or more machines (--wait-for-peers)",
                    n_bytes));
  }
  buffer.size_bytes_ = n_bytes;
  buffer.allocator_ = &allocator;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ != nullptr) allocator_->release(data_, size_bytes_);
}

}  // namespace exo
