/* CUDA on one CPU thread: what kernels and launchers find instead of nvcc's headers when INF_EMU is
 * defined.
 *
 * A kernel is an ordinary function. A launch runs it for the blocks of the grid one after another;
 * the threads of a block are fibers, each with a stack of its own, that give way to each other only
 * where they wait: at barriers, and where the lanes of a warp exchange something. Which one runs
 * next is drawn by a seeded generator, so that code which lacks a barrier gives other results.
 *
 *   types.h       words of the language: qualifiers, vectors, dim3
 *   block.h       threads, warps and blocks; barriers and meetings of lanes
 *   intrinsics.h  functions that device code calls
 *   machine.h     the wrappers of prelude.cuh around single machine instructions
 *   bulk.h        those of bulk.cuh; hopper.h: those of hopper.cuh
 *   runtime.h     the runtime's C interface: memory, streams, events, graphs; launches
 *   race.h        which accesses nothing orders, in a build of its own (preset races)
 *
 * Environment: INF_EMU_SEED (a number, 1 by default) chooses the order of threads; INF_EMU_EAGER=1
 * does work when it is asked for instead of when it is waited for; INF_EMU_DEVICES is the number of
 * devices, INF_EMU_MEMORY their bytes, INF_EMU_CAPABILITY what they say they are (80),
 * INF_EMU_GRAPHS how many graphs there is memory for. What a
 * kernel must not do ends the process with a message that names the kernel, the block and the
 * threads.
 *
 * Not here: several blocks at a time (a block that waits for another one never ends), timing, and
 * what the memory model would allow beyond one order of whole accesses. */
#ifndef INF_EMU_H
#define INF_EMU_H

#include "kernels/cuda/emu/block.h"
#include "kernels/cuda/emu/intrinsics.h"
#include "kernels/cuda/emu/machine.h"
#include "kernels/cuda/emu/runtime.h"
#include "kernels/cuda/emu/types.h"

#endif
