/// Lanes of steps, shared by threads: a lane's steps run one after the other in their order, those
/// of different lanes at one time. A thread takes whichever lane is furthest behind, so that all
/// threads work on one step or two, whose data they share, and end together; a thread that is held
/// up holds up its lane alone.
#pragma once

#include <atomic>
#include <cstdint>

namespace exo::kernels::cpu {

class Lanes {
 public:
  struct Step {
    int64_t lane = 0, step = 0;
  };

  /// `next`: [n_lanes], for the steps that come next; outlives the Lanes.
  Lanes(std::atomic<int64_t>* next, int64_t n_lanes, int64_t n_steps)
      : next_(next), n_lanes_(n_lanes), n_steps_(n_steps) {
    for (int64_t i = 0; i < n_lanes; ++i) next_[i].store(0, std::memory_order_relaxed);
  }

  /// Takes a step of a lane that no other thread has; false if there is none: what is left are
  /// lanes of other threads, which go on with them. done(*step) gives the lane back.
  bool take(Step* step) {
    for (;;) {
      Step least = {0, n_steps_};
      for (int64_t i = 0; i < n_lanes_; ++i) {
        const int64_t at = next_[i].load(std::memory_order_relaxed);
        if (at != kTaken && at < least.step) least = {i, at};
      }
      if (least.step == n_steps_) return false;
      int64_t expected = least.step;
      if (next_[least.lane].compare_exchange_strong(expected, kTaken, std::memory_order_acquire)) {
        *step = least;
        return true;
      }
    }
  }

  void done(const Step& step) { next_[step.lane].store(step.step + 1, std::memory_order_release); }

 private:
  static constexpr int64_t kTaken = -1;

  std::atomic<int64_t>* next_;
  int64_t n_lanes_, n_steps_;
};

}  // namespace exo::kernels::cpu
