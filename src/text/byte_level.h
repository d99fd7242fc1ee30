/// The byte-level alphabet of tokenizer.json: every byte is written as one printable character
/// (printable Latin-1 bytes as themselves, the other 68 as U+0100 and on), so that a token can be a
/// JSON string. Source: GPT-2's bytes_to_unicode, as in the `tokenizers` library.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace exo::text {

/// The character that stands for `byte`, as UTF-8.
std::string byte_level_symbol(uint8_t byte);

/// The bytes of a token. A token with any character outside the alphabet (an added token such as
/// "<｜User｜>") stands for its own UTF-8 bytes, as in the reference's decoder. Precondition: valid
/// UTF-8.
std::string byte_level_bytes(std::string_view token);

}  // namespace exo::text
