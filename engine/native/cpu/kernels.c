/* All kernels for one variant and kind of element; the build says which, by VARIANT and ELEMENT_…. */
#include "kernels.h"

#include "element.h"

#include "products.c"
#include "quantized.c"
#include "norms.c"
#include "rotation.c"
#include "attention.c"
#include "choice.c"

#define JOINED(a, b, c) a##_##b##_##c
#define NAMED(a, b, c) JOINED(a, b, c)
#if defined(ELEMENT_BFLOAT16)
#define KIND bfloat16
#else
#define KIND float32
#endif

const struct kernels NAMED(kernels, VARIANT, KIND) = {multiply, multiply_quantized, sum_groups, normalize,
                                                          rotate,   attend,             merge,      choose};
