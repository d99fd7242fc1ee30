/// JSON that comes from outside: parsing that never throws, and typed reads that name the field in
/// their errors.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace exo {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

/// Parses a whole document. `what` names it in errors ("config.json"). Rejects duplicate keys in an
/// object, nesting deeper than 256, invalid UTF-8 and anything after the document.
Result<Json> parse_json(std::string_view text, std::string_view what);

/// Reads and parses a file of at most `max_bytes` bytes.
Result<Json> read_json_file(const std::string& path, uint64_t max_bytes = uint64_t{64} << 20);

/// Typed reads of one object's fields. `where` is named in errors ("config.json").
///   JsonObject o(json, "config.json");
///   EXO_ASSIGN_OR_RETURN(int64_t n, o.integer("hidden_size", 1, 1 << 20));
/// The `_or` forms return the default when the field is missing or null, and still fail on a wrong
/// type.
class JsonObject {
 public:
  /// `json` must outlive this. If it is not an object every read fails saying so.
  JsonObject(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  bool has(std::string_view key) const;  ///< present and not null
  Result<int64_t> integer(std::string_view key, int64_t min, int64_t max) const;
  Result<int64_t> integer_or(std::string_view key, int64_t fallback, int64_t min,
                             int64_t max) const;
  Result<double> number(std::string_view key) const;  ///< finite
  Result<double> number_or(std::string_view key, double fallback) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;
  Result<std::string> string(std::string_view key) const;
  Result<std::string> string_or(std::string_view key, std::string fallback) const;
  Result<const Json*> object(std::string_view key) const;
  Result<const Json*> array(std::string_view key) const;

 private:
  Result<const Json*> find(std::string_view key) const;
  Status wrong_type(std::string_view key, std::string_view expected, const Json& got) const;

  const Json& json_;
  std::string where_;
};

}  // namespace exo
