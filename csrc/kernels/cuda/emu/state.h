/* What memory.cc, stream.cc and device.cc know of each other. */
#ifndef INF_EMU_STATE_H
#define INF_EMU_STATE_H

#include <memory>
#include <vector>

#include "kernels/cuda/emu/runtime.h"

typedef std::function<void()> emu_work;

/* Remembers the calling thread's last error, and returns it. */
cudaError_t emu_fail(cudaError_t error);
/* What emu_break has said, or cudaSuccess. */
cudaError_t emu_broken();
/* What a capture forbids its thread: refuses and spoils the capture. */
bool emu_is_forbidden();
int emu_device();
/* Why the device is lost; cudaSuccess: it is not. */
cudaError_t emu_lost_device(int device);
/* Does everything that was put into streams: all, or those that the legacy stream waits for. */
void emu_finish_all(bool also_non_blocking);

enum emu_place { EMU_PAGEABLE, EMU_PINNED, EMU_DEVICE, EMU_BEYOND };
/* Where [p, p + bytes) lies; EMU_BEYOND: it begins in an allocation and ends behind it. */
emu_place emu_place_of(const void *p, size_t bytes);
/* Bytes of the allocation that p lies in, and where it begins; 0: it lies in none. */
size_t emu_allocation_of(const void *p, uintptr_t *begin);

/* Of the work that the calling thread is doing: the stream, and how much was done before. */
extern thread_local const void *emu_step_stream;
extern thread_local uint64_t emu_step;

#endif
