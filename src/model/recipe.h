/// The recipe of a weight cache: its units (files), their entries, and the checkpoint tensors that
/// each entry is made of. Data, made from a plan: conversion, the random cache, the byte counts of
/// the plan and the check of a checkpoint's completeness all read the same lists.
#pragma once

#include <string>
#include <vector>

#include "model/plan.h"
#include "weights/pack.h"

namespace exo::model {

/// Rows of a checkpoint matrix, as they are or transposed.
struct SourceRef {
  std::string tensor;
  int64_t row_begin = 0;
  int64_t n_rows = 0;  ///< 0: all
  bool transposed = false;
};

struct RecipeEntry {
  std::string path;
  bool packed = false;
  // plain: one source, rounded to dtype
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  // packed: sources.size() matrices [n_out, n_in] in one format
  weights::PackSpec spec;
  int64_t n_out = 0, n_in = 0;
  int64_t n_rows = 0;  ///< of one source: n_out, or less for gate_up, whose halves are padded
  std::vector<SourceRef> sources;
  std::vector<SourceRef> ups;  ///< up halves of gate_up matrices, or none

  bool gate_up() const { return !ups.empty(); }
  int64_t n_bytes() const;  ///< in the cache, scales included
};

/// One tensor file of the cache.
struct RecipeUnit {
  std::string name;
  bool mtp = false;
  std::vector<RecipeEntry> entries;
  int64_t n_bytes() const;  ///< of the file
};

/// The units of plan.placement, in the order in which they are written.
std::vector<RecipeUnit> make_recipe(const Plan& plan);

}  // namespace exo::model
