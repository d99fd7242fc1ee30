/// The free list of the latent cache's pages. A page number is the same page in every layer.
/// Pages are handed out lowest first; nothing is written to them here.
#pragma once

#include <cstdint>
#include <vector>

namespace exo::engine {

class PagePool {
 public:
  explicit PagePool(int64_t n_pages);

  int64_t n_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t n_pages() const { return n_pages_; }

  /// Appends `n` pages to `pages`; false, with nothing changed, when there are fewer.
  bool take(int64_t n, std::vector<int32_t>& pages);
  /// Gives back all but the first `n_kept` of `pages`.
  void give_back(std::vector<int32_t>& pages, int64_t n_kept);

 private:
  int64_t n_pages_;
  std::vector<int32_t> free_;  ///< a heap, the lowest number on top
};

}  // namespace exo::engine
