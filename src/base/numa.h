/// Where threads and pages go on a machine whose memory is in several places (NUMA nodes; libhwloc
/// finds them). With one node nothing is bound to anything: the system does that well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace exo {

class NumaTopology {
 public:
  /// This machine's, or the one that $HWLOC_SYNTHETIC describes: the nodes that have processors
  /// this process may use.
  static Result<NumaTopology> of_machine();
  /// A made-up one in hwloc's notation, "numa:2 core:4 pu:1": placements are computed, nothing is
  /// bound.
  static Result<NumaTopology> synthetic(const std::string& description);
  NumaTopology(NumaTopology&&) noexcept;
  NumaTopology& operator=(NumaTopology&&) noexcept;
  ~NumaTopology();

  int n_nodes() const { return static_cast<int>(cpus_.size()); }
  /// Processors of a node, by the system's numbers.
  const std::vector<int>& cpus(int node) const { return cpus_[static_cast<size_t>(node)]; }

  /// The node of each of n_threads: in order, and as many on a node as it has of the processors.
  /// Every thread has its memory's bandwidth, whether there are as many threads as processors or
  /// not.
  std::vector<int> nodes_of_threads(int n_threads) const;

  /// The calling thread runs on this node's processors from now on.
  Status bind_thread(int node) const;
  /// The pages of [data, data + n_bytes) that aren't there yet go to all nodes in turn: memory that
  /// every thread reads. `data` is at a page's beginning.
  Status interleave(std::byte* data, uint64_t n_bytes) const;

 private:
  struct Impl;
  explicit NumaTopology(std::unique_ptr<Impl> impl);
  static Result<NumaTopology> load(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  std::vector<std::vector<int>> cpus_;
};

}  // namespace exo
