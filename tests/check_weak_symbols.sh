#!/bin/sh
# Files compiled for one instruction set must define no weak symbol: the linker keeps one copy of an inline function
# for the whole program, and that one could be the copy with instructions that the machine lacks.
# Usage: check_weak_symbols.sh NM OBJECT...
nm="$1"
shift
weak=$("$nm" -C "$@" | grep -E '^[0-9a-f]+ [VWu] ' | grep -v -E 'DW\.ref\.__gxx_personality|__asan_|__tsan_|__odr_asan')
if [ -n "$weak" ]; then
  echo "weak symbols in kernels of one instruction set (call no inline function of a shared header there):"
  echo "$weak"
  exit 1
fi
