#include "text/bpe.h"

#include <algorithm>
#include <bit>

namespace exo::text {
namespace {

uint64_t slot_hash(int32_t left, int32_t right) {
  const uint64_t key =
      uint64_t{static_cast<uint32_t>(left)} << 32 | uint64_t{static_cast<uint32_t>(right)};
  return key * 0x9e3779b97f4a7c15u;  // Fibonacci hashing: the top bits are taken
}

// A max-heap's order that puts the lowest rank first, then the leftmost pair.
bool comes_later(const Bpe::Scratch::Candidate& a, const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
}

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, std::vector<Merge> merges)
    : byte_ids_(byte_ids), merges_(std::move(merges)) {
  const int bits = std::bit_width(merges_.size()) + 1;  // at most half full
  slot_shift_ = 64 - bits;
  slots_.assign(size_t{1} << bits, kNone);
  const size_t mask = slots_.size() - 1;
  for (uint32_t rank = 0; rank < merges_.size(); ++rank) {
    const Merge& merge = merges_[rank];
    size_t slot = slot_hash(merge.left, merge.right) >> slot_shift_;
    while (slots_[slot] != kNone &&
           (merges_[slots_[slot]].left != merge.left || merges_[slots_[slot]].right != merge.right))
      slot = (slot + 1) & mask;
    slots_[slot] = rank;
  }
}

uint32_t Bpe::rank_of(int32_t left, int32_t right) const {
  const size_t mask = slots_.size() - 1;
  for (size_t slot = slot_hash(left, right) >> slot_shift_;; slot = (slot + 1) & mask) {
    const uint32_t rank = slots_[slot];
    if (rank == kNone || (merges_[rank].left == left && merges_[rank].right == right)) return rank;
  }
}

void Bpe::push_pair(uint32_t at, Scratch& scratch) const {
  const auto& symbols = scratch.symbols;
  if (at == kNone || symbols[at].next == kNone) return;
  const uint32_t rank = rank_of(symbols[at].id, symbols[symbols[at].next].id);
  if (rank == kNone) return;
  scratch.heap.push_back({rank, at});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), comes_later);
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  const auto n_bytes = static_cast<uint32_t>(word.size());
  symbols.clear();
  heap.clear();
  for (uint32_t i = 0; i < n_bytes; ++i)
    symbols.push_back(
        {byte_ids_[static_cast<uint8_t>(word[i])], i - 1, i + 1 < n_bytes ? i + 1 : kNone});
  for (uint32_t i = 0; i + 1 < n_bytes; ++i) push_pair(i, scratch);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), comes_later);
    const auto [rank, at] = heap.back();
    heap.pop_back();
    const Merge& merge = merges_[rank];
    auto& left = symbols[at];
    // A candidate whose symbols have been joined to others since is stale.
    if (left.id != merge.left || left.next == kNone || symbols[left.next].id != merge.right)
      continue;
    auto& right = symbols[left.next];
    left.id = merge.joined;
    right.id = -1;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = at;
    push_pair(left.previous, scratch);
    push_pair(at, scratch);
  }
  if (n_bytes == 0) return;
  for (uint32_t at = 0; at != kNone; at = symbols[at].next) ids.push_back(symbols[at].id);
}

}  // namespace exo::text
