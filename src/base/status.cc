#include "base/status.h"

namespace exo {

const char* to_string(StatusCode code) {
  switch (code) {
    case StatusCode::ok:
      return "ok";
    case StatusCode::invalid_argument:
      return "invalid_argument";
    case StatusCode::not_found:
      return "not_found";
    case StatusCode::data_loss:
      return "data_loss";
    case StatusCode::resource_exhausted:
      return "resource_exhausted";
    case StatusCode::failed_precondition:
      return "failed_precondition";
    case StatusCode::unimplemented:
      return "unimplemented";
    case StatusCode::cancelled:
      return "cancelled";
    case StatusCode::unavailable:
      return "unavailable";
    case StatusCode::internal:
      return "internal";
  }
  return "unknown";
}

Status Status::with_context(std::string_view context) && {
  if (!ok()) message_.insert(0, std::string(context) + ": ");
  return std::move(*this);
}

Status invalid_argument(std::string message) {
  return {StatusCode::invalid_argument, std::move(message)};
}
Status not_found(std::string message) { return {StatusCode::not_found, std::move(message)}; }
Status data_loss(std::string message) { return {StatusCode::data_loss, std::move(message)}; }
Status resource_exhausted(std::string message) {
  return {StatusCode::resource_exhausted, std::move(message)};
}
Status failed_precondition(std::string message) {
  return {StatusCode::failed_precondition, std::move(message)};
}
Status unimplemented(std::string message) {
  return {StatusCode::unimplemented, std::move(message)};
}
Status cancelled(std::string message) { return {StatusCode::cancelled, std::move(message)}; }
Status unavailable(std::string message) { return {StatusCode::unavailable, std::move(message)}; }
Status internal_error(std::string message) { return {StatusCode::internal, std::move(message)}; }

}  // namespace exo
