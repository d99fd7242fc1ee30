/// Byte pair encoding of one word: joins the adjacent pair of lowest rank, leftmost first, until no
/// pair is left (Sennrich et al. 2016), in O(n log n) for a word of n bytes.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace exo::text {

struct Merge {
  int32_t left;
  int32_t right;
  int32_t joined;
};

class Bpe {
 public:
  /// Buffers reused from word to word; one for each thread.
  struct Scratch;

  Bpe() = default;
  /// merges[r] has rank r; of equal pairs the last counts, as in the reference. byte_ids: the token
  /// of each byte (-1 for a byte that valid UTF-8 doesn't have).
  Bpe(const std::array<int32_t, 256>& byte_ids, std::vector<Merge> merges);

  /// Appends the ids of `word` (valid UTF-8 bytes).
  void encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};

  uint32_t rank_of(int32_t left, int32_t right) const;
  void push_pair(uint32_t at, Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<Merge> merges_;
  std::vector<uint32_t> slots_;  ///< open addressing: ranks of merges_, kNone where empty
  int slot_shift_ = 0;
};

struct Bpe::Scratch {
  struct Symbol {
    int32_t id;  ///< -1: joined to the one before
    uint32_t previous;
    uint32_t next;
  };
  struct Candidate {
    uint32_t rank;
    uint32_t at;  ///< index of the pair's left symbol
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

}  // namespace exo::text
