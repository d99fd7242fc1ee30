#include "base/numa.h"

#include <fmt/core.h>
#include <hwloc.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace exo {
namespace {

Status hwloc_error(std::string_view what) {
  return unavailable(fmt::format("libhwloc cannot {}: {}", what, std::strerror(errno)));
}

// A set of processors or nodes, freed at the end of its scope.
struct Bitmap {
  hwloc_bitmap_t set = hwloc_bitmap_alloc();
  Bitmap() = default;
  Bitmap(const Bitmap&) = delete;
  Bitmap& operator=(const Bitmap&) = delete;
  ~Bitmap() { hwloc_bitmap_free(set); }
};

}  // namespace

struct NumaTopology::Impl {
  hwloc_topology_t topology = nullptr;
  std::vector<hwloc_obj_t> nodes;
  ~Impl() {
    if (topology != nullptr) hwloc_topology_destroy(topology);
  }
};

NumaTopology::NumaTopology(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NumaTopology::NumaTopology(NumaTopology&&) noexcept = default;
NumaTopology& NumaTopology::operator=(NumaTopology&&) noexcept = default;
NumaTopology::~NumaTopology() = default;

Result<NumaTopology> NumaTopology::load(std::unique_ptr<Impl> impl) {
  hwloc_topology_t topology = impl->topology;
  // Groups must stay: they are what a node's processors are known by.
  hwloc_topology_set_cache_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
  if (hwloc_topology_load(topology) != 0) return hwloc_error("read the machine's topology");
  const Bitmap usable;
  hwloc_bitmap_copy(usable.set, hwloc_topology_get_allowed_cpuset(topology));
  const Bitmap bound;
  if (hwloc_topology_is_thissystem(topology) != 0 &&
      hwloc_get_cpubind(topology, bound.set, HWLOC_CPUBIND_THREAD) == 0 &&
      hwloc_bitmap_intersects(usable.set, bound.set) != 0)
    hwloc_bitmap_and(usable.set, usable.set, bound.set);
  NumaTopology result(std::move(impl));
  hwloc_obj_t node = nullptr;
  while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr) {
    const Bitmap own;
    hwloc_bitmap_and(own.set, node->cpuset, usable.set);
    std::vector<int> cpus;
    for (int i = hwloc_bitmap_first(own.set); i >= 0; i = hwloc_bitmap_next(own.set, i))
      cpus.push_back(i);
    if (cpus.empty()) continue;  // memory without processors
    result.impl_->nodes.push_back(node);
    result.cpus_.push_back(std::move(cpus));
  }
  if (result.cpus_.empty()) return unavailable("libhwloc finds no node with a processor to use");
  return result;
}

Result<NumaTopology> NumaTopology::of_machine() {
  auto impl = std::make_unique<Impl>();
  if (hwloc_topology_init(&impl->topology) != 0) return hwloc_error("begin");
  return load(std::move(impl));
}

Result<NumaTopology> NumaTopology::synthetic(const std::string& description) {
  auto impl = std::make_unique<Impl>();
  if (hwloc_topology_init(&impl->topology) != 0) return hwloc_error("begin");
  if (hwloc_topology_set_synthetic(impl->topology, description.c_str()) != 0)
    return invalid_argument(
        fmt::format("topology '{}': expected hwloc's notation, as in \"numa:2 core:4 pu:1\"",
                    description.substr(0, 80)));
  return load(std::move(impl));
}

std::vector<int> NumaTopology::nodes_of_threads(int n_threads) const {
  std::vector<int> node_of_cpu;
  for (int node = 0; node < n_nodes(); ++node)
    node_of_cpu.insert(node_of_cpu.end(), cpus(node).size(), node);
  std::vector<int> nodes;
  const auto n_cpus = static_cast<int64_t>(node_of_cpu.size());
  for (int64_t i = 0; i < n_threads; ++i)
    nodes.push_back(node_of_cpu[static_cast<size_t>(i * n_cpus / n_threads)]);
  return nodes;
}

Status NumaTopology::bind_thread(int node) const {
  const Bitmap set;
  for (const int cpu : cpus(node)) hwloc_bitmap_set(set.set, static_cast<unsigned>(cpu));
  if (hwloc_set_cpubind(impl_->topology, set.set, HWLOC_CPUBIND_THREAD) == 0) return ok_status();
  return hwloc_error(fmt::format("bind a thread to node {}", node));
}

Status NumaTopology::interleave(std::byte* data, uint64_t n_bytes) const {
  if (n_bytes == 0 || n_nodes() == 1) return ok_status();
  const Bitmap set;
  for (const hwloc_obj_t node : impl_->nodes) hwloc_bitmap_set(set.set, node->os_index);
  if (hwloc_set_area_membind(impl_->topology, data, n_bytes, set.set, HWLOC_MEMBIND_INTERLEAVE,
                             HWLOC_MEMBIND_BYNODESET) == 0)
    return ok_status();
  return hwloc_error("spread memory over the nodes");
}

}  // namespace exo
