// What a kernel source sees instead of CUDA when it is compiled as C++17 for the CPU (KQM_EMULATION).
//
// Every thread of a block is a fiber of one operating system thread. Barriers and warp operations are the points where
// fibers meet; between them a thread runs undisturbed. docs: emulation/README.md.
#ifndef KQM_EMULATION_H
#define KQM_EMULATION_H

#if !defined(KQM_EMULATION)
#error "emulation.h is for builds with KQM_EMULATION"
#endif

#include "emulation/types.h"

#include "emulation/engine.h"

#include "emulation/numbers.h"

#include "emulation/shared.h"

#include "emulation/warp.h"

#include "emulation/global.h"

#include "emulation/launch.h"

#endif
