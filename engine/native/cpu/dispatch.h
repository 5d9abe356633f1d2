/* Which variants there are, and which of them this processor runs. */
#ifndef APPLIANCE_DISPATCH_H
#define APPLIANCE_DISPATCH_H

#include "kernels.h"

/* The kernels of a variant by its name, or NULL if there is none or the processor lacks it. */
const struct kernels *kernels_of(const char *variant, int element);

#if defined(__x86_64__)
/* Whether the processor has AVX2, and the system keeps its registers. */
int runs_avx2(void);
#endif

#endif
