#include "kernels.h"

#define KERNELZOO_ISA plain
#include "kernels_impl.h"

const kernelzoo::Kernels* kernelzoo::kernels_plain() { return plain::TABLES; }
