// The table of the launchers that were compiled with the emulation, for the host program.
#include "emulation.h"

#if KQM_EMULATION_HAS_TABLE
#include "kquant_moe.h"

KQM_EMULATION_EXPORT const void *kqm_emulation_table() { return kqm_emulated::kqm_kernel_table(kqm_emulated::KQM_ABI); }
#else
KQM_EMULATION_EXPORT const void *kqm_emulation_table() { return nullptr; }
#endif
