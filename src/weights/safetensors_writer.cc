#include "weights/safetensors_writer.h"

#include <fmt/core.h>

#include "base/json.h"

namespace exo::weights {
namespace {

Result<uint64_t> tensor_bytes(const NamedTensor& tensor) {
  auto n = static_cast<uint64_t>(size_bytes(tensor.dtype));
  for (int64_t d : tensor.shape) {
    if (d < 0 || __builtin_mul_overflow(n, static_cast<uint64_t>(d), &n) || n > uint64_t{1} << 62) {
      return invalid_argument(
          fmt::format("tensor '{}': {} is not a size that a file can hold", tensor.name, d));
    }
  }
  return n;
}

}  // namespace

std::string_view safetensors_dtype(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::f8_e4m3:
      return "F8_E4M3";
    case DType::f8_e8m0:
      return "F8_E8M0";
    case DType::i8:
      return "I8";
    case DType::u8:
      return "U8";
    case DType::i32:
      return "I32";
    case DType::i64:
      return "I64";
  }
  return "?";
}

Result<SafetensorsStream> SafetensorsStream::create(
    const std::string& path, std::span<const NamedTensor> tensors,
    const std::map<std::string, std::string>& metadata) {
  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    EXO_ASSIGN_OR_RETURN(const uint64_t n_bytes, tensor_bytes(tensor));
    if (header.contains(tensor.name))
      return invalid_argument(fmt::format("{}: two tensors named '{}'", path, tensor.name));
    if (offset + n_bytes > uint64_t{1} << 62) return invalid_argument(path + ": too large");
    header[tensor.name] = {{"dtype", safetensors_dtype(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + n_bytes}}};
    offset += n_bytes;
  }
  std::string text = header.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data begins at a multiple of 8
  SafetensorsStream stream;
  stream.path_ = path;
  stream.expected_bytes_ = 8 + text.size() + offset;
  EXO_ASSIGN_OR_RETURN(stream.file_, AtomicFile::create(path));
  const uint64_t length = text.size();
  char prefix[8];
  for (int i = 0; i < 8; ++i) prefix[i] = static_cast<char>(length >> 8 * i & 0xFF);
  EXO_RETURN_IF_ERROR(stream.file_.append(prefix, 8));
  EXO_RETURN_IF_ERROR(stream.file_.append(text.data(), text.size()));
  return stream;
}

Status SafetensorsStream::append(std::span<const std::byte> bytes) {
  return file_.append(bytes.data(), bytes.size());
}

Status SafetensorsStream::commit() {
  if (file_.size_bytes() != expected_bytes_) {
    return internal_error(fmt::format("{}: {} bytes written, its header promises {}", path_,
                                      file_.size_bytes(), expected_bytes_));
  }
  return file_.commit();
}

Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
  for (const NamedTensor& tensor : tensors) {
    EXO_ASSIGN_OR_RETURN(const uint64_t n_bytes, tensor_bytes(tensor));
    if (n_bytes != tensor.bytes.size()) {
      return invalid_argument(fmt::format("{}: tensor '{}' has {} bytes, its shape needs {}", path,
                                          tensor.name, tensor.bytes.size(), n_bytes));
    }
  }
  EXO_ASSIGN_OR_RETURN(SafetensorsStream stream,
                       SafetensorsStream::create(path, tensors, metadata));
  for (const NamedTensor& tensor : tensors) EXO_RETURN_IF_ERROR(stream.append(tensor.bytes));
  return stream.commit();
}

}  // namespace exo::weights
