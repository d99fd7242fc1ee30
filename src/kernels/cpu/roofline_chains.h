/// Sixteen independent chains of one instruction on 512-bit registers, for the loops of
/// roofline_avx512.cc and roofline_avx512bf16.cc.
#pragma once

// n rounds of acc = acc + a * b for 16 sums, which cover the latency of 4 to 5 cycles on two units;
// a and b are vectors, n is used up. In assembly: compilers keep an array of sums in memory as soon
// as it is hidden from them.
#define EXO_ZERO(acc) "vpxor %%xmm" #acc ", %%xmm" #acc ", %%xmm" #acc "\n\t"
#define EXO_CHAIN(op, acc) op " %[b], %[a], %%zmm" #acc "\n\t"
#define EXO_CHAINS(op, n, a, b)                                                                    \
  asm volatile(EXO_ZERO(0) EXO_ZERO(1) EXO_ZERO(2) EXO_ZERO(3) EXO_ZERO(4) EXO_ZERO(5) EXO_ZERO(6) \
                   EXO_ZERO(7) EXO_ZERO(8) EXO_ZERO(9) EXO_ZERO(10) EXO_ZERO(11) EXO_ZERO(12)      \
                       EXO_ZERO(13) EXO_ZERO(14) EXO_ZERO(15) "1:\n\t" EXO_CHAIN(op, 0)            \
                           EXO_CHAIN(op, 1) EXO_CHAIN(op, 2) EXO_CHAIN(op, 3) EXO_CHAIN(op, 4)     \
                               EXO_CHAIN(op, 5) EXO_CHAIN(op, 6) EXO_CHAIN(op, 7) EXO_CHAIN(op, 8) \
                                   EXO_CHAIN(op, 9) EXO_CHAIN(op, 10) EXO_CHAIN(op, 11)            \
                                       EXO_CHAIN(op, 12) EXO_CHAIN(op, 13) EXO_CHAIN(op, 14)       \
                                           EXO_CHAIN(op, 15) "dec %[n]\n\tjnz 1b"                  \
               : [n] "+r"(n)                                                                       \
               : [a] "v"(a), [b] "v"(b)                                                            \
               : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",     \
                 "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15")
