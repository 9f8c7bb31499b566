// How the kernels must be compiled: what decides about results, and what the instructions need. A compilation without it ends here,
// with a sentence.
//
//   nvcc -std=c++17 -fmad=false -DKQM_FMAD_FALSE -prec-div=true -prec-sqrt=true -ftz=false -Xcompiler -ffp-contract=off
//
// Results are defined to the bit: a product and a sum are contracted only where the source says fma, division and square root are
// correctly rounded, and denormals count. Of the flags that say so the compiler tells the source three, which table.cu looks at in
// device code (kqm_flags_of_this_build). Whether products are contracted it does not tell; so who sets -fmad=false says so with a
// macro beside it.
#pragma once

#if !defined(KQM_FMAD_FALSE)
#error \
    "kquant-moe: results are defined without contraction of products and sums: compile with -fmad=false -DKQM_FMAD_FALSE"
#endif
#if defined(__FAST_MATH__)
#error "kquant-moe: results are defined by IEEE arithmetic: compile without -ffast-math"
#endif
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "kquant-moe: the kernels need compute capability 8.0 or later: compile for sm_80 or above, such as -arch=sm_80"
#endif
