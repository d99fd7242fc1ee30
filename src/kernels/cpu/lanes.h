/// Lanes of steps, shared by threads: a lane's steps run one after the other in their order, those
/// of different lanes at one time. Each thread has lanes of its own, whose data stay in its core's
/// cache, and takes the one that is furthest behind; only when those are some steps ahead of
/// another's, or done, it takes that. So all threads work on a few steps, whose data they share,
/// and end together; a thread that is held up holds up only the lane that it has taken.
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
  Lanes(std::atomic<int64_t>* next, int64_t n_lanes, int64_t n_steps, int n_threads)
      : next_(next), n_lanes_(n_lanes), n_steps_(n_steps), n_threads_(n_threads) {
    for (int64_t i = 0; i < n_lanes; ++i) next_[i].store(0, std::memory_order_relaxed);
  }

  /// Takes a step of a lane that no other thread has taken; false if there is none: what is left
  /// are lanes that others have and go on with. done(*step) gives the lane back.
  bool take(int thread, Step* step) {
    for (;;) {
      Step own = {0, n_steps_}, any = own;
      for (int64_t i = 0; i < n_lanes_; ++i) {
        const int64_t at = next_[i].load(std::memory_order_relaxed);
        if (at == kTaken) continue;
        if (at < any.step) any = {i, at};
        if (at < own.step && owner(i) == thread) own = {i, at};
      }
      const Step& least = own.step < n_steps_ && own.step <= any.step + kStepsAhead ? own : any;
      if (least.step == n_steps_) return false;
      int64_t expected = least.step;
      if (next_[least.lane].compare_exchange_strong(expected, kTaken, std::memory_order_acquire)) {
        *step = least;
        return true;
      }
    }
  }

  /// The thread whose lane it is.
  int owner(int64_t lane) const { return static_cast<int>(lane % n_threads_); }

  void done(const Step& step) { next_[step.lane].store(step.step + 1, std::memory_order_release); }

 private:
  static constexpr int64_t kTaken = -1;
  static constexpr int64_t kStepsAhead = 2;

  std::atomic<int64_t>* next_;
  int64_t n_lanes_, n_steps_;
  int n_threads_;
};

}  // namespace exo::kernels::cpu
