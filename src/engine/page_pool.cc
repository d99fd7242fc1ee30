#include "engine/page_pool.h"

#include <algorithm>
#include <functional>

namespace exo::engine {

PagePool::PagePool(int64_t n_pages) : n_pages_(n_pages) {
  free_.resize(static_cast<size_t>(n_pages));
  for (int64_t i = 0; i < n_pages; ++i) free_[static_cast<size_t>(i)] = static_cast<int32_t>(i);
}

bool PagePool::take(int64_t n, std::vector<int32_t>& pages) {
  if (n > n_free()) return false;
  for (int64_t i = 0; i < n; ++i) {
    std::pop_heap(free_.begin(), free_.end(), std::greater<>());
    pages.push_back(free_.back());
    free_.pop_back();
  }
  return true;
}

void PagePool::give_back(std::vector<int32_t>& pages, int64_t n_kept) {
  while (static_cast<int64_t>(pages.size()) > n_kept) {
    free_.push_back(pages.back());
    std::push_heap(free_.begin(), free_.end(), std::greater<>());
    pages.pop_back();
  }
}

}  // namespace exo::engine
