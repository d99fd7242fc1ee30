/// Every operator new of a program that links count_allocations.cc, counted.
#pragma once

#include <cstdint>

int64_t allocation_count();
