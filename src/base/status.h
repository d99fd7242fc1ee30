/// Status and Result: how every function that can fail on input says so. Nothing in exo.cpp throws
/// across a room's edge and no file, request or peer reaches an abort.
///
/// A message says what, where, expected, got, and what to do, in one or two sentences:
///   "model-00001.safetensors: tensor 'a.weight' ends at byte 4096, file has 1024: the download is
///   incomplete;
///    run `exo models pull` again".
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace exo {

enum class StatusCode {
  ok,
  invalid_argument,     ///< the caller's value is wrong (a flag, a request, a config field)
  not_found,            ///< a file, tensor, model or sequence that is not there
  data_loss,            ///< truncated, corrupted or foreign data
  resource_exhausted,   ///< memory, disk, pages, threads
  failed_precondition,  ///< right call, wrong state (stale cache, context full)
  unimplemented,        ///< recognised, and not run by this build
  cancelled,
  unavailable,  ///< a peer, a device or a service that does not answer
  internal,     ///< a defect of exo.cpp itself
};

/// The code's name in lower case, e.g. "data_loss".
const char* to_string(StatusCode code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::ok; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  /// The same error with "context: " before its message; ok stays ok.
  Status with_context(std::string_view context) &&;

 private:
  StatusCode code_ = StatusCode::ok;
  std::string message_;
};

inline Status ok_status() { return {}; }
Status invalid_argument(std::string message);
Status not_found(std::string message);
Status data_loss(std::string message);
Status resource_exhausted(std::string message);
Status failed_precondition(std::string message);
Status unimplemented(std::string message);
Status cancelled(std::string message);
Status unavailable(std::string message);
Status internal_error(std::string message);

/// A value or the reason why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Status status) : state_(std::in_place_index<1>, std::move(status)) {  // NOLINT
    if (std::get<1>(state_).ok())
      std::get<1>(state_) = internal_error("Result made from an ok Status");
  }

  bool ok() const { return state_.index() == 0; }
  Status status() const { return ok() ? Status() : std::get<1>(state_); }

  /// The value. Precondition: ok().
  T& operator*() & { return std::get<0>(state_); }
  const T& operator*() const& { return std::get<0>(state_); }
  T&& operator*() && { return std::get<0>(std::move(state_)); }
  T* operator->() { return &std::get<0>(state_); }
  const T* operator->() const { return &std::get<0>(state_); }

 private:
  std::variant<T, Status> state_;
};

#define EXO_CONCAT_INNER(a, b) a##b
#define EXO_CONCAT(a, b) EXO_CONCAT_INNER(a, b)

/// Returns from the calling function if `expr` (a Status) is an error.
#define EXO_RETURN_IF_ERROR(expr)                                               \
  do {                                                                          \
    if (::exo::Status exo_status = (expr); !exo_status.ok()) return exo_status; \
  } while (false)

/// EXO_ASSIGN_OR_RETURN(auto x, make_x()); assigns the value, or returns the error.
#define EXO_ASSIGN_OR_RETURN(decl, expr) \
  EXO_ASSIGN_OR_RETURN_IMPL(EXO_CONCAT(exo_result_, __LINE__), decl, expr)
#define EXO_ASSIGN_OR_RETURN_IMPL(tmp, decl, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return tmp.status();              \
  decl = *std::move(tmp)

}  // namespace exo
