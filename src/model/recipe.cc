#include "model/recipe.h"

#include "model/family.h"
#include "weights/weight_config.h"

namespace exo::model {

int64_t RecipeEntry::n_bytes() const {
  if (packed)
    return static_cast<int64_t>(sources.size()) * static_cast<int64_t>(weights::packed_matrix_bytes(
                                                      spec.format, n_out, n_in, spec.k_block));
  int64_t n = size_bytes(dtype);
  for (const int64_t d : shape) n *= d;
  return n;
}

int64_t RecipeUnit::n_bytes() const {
  int64_t n = 0;
  for (const RecipeEntry& entry : entries) n = align_up(n) + entry.n_bytes();
  return n;
}

std::vector<RecipeUnit> make_recipe(const Plan& plan) {
  return family_of(plan.config).make_recipe(plan);
}

}  // namespace exo::model
