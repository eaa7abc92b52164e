/* Where tests and launchers include the toolkit's header. */
#include "kernels/cuda/emu/emu.h"
