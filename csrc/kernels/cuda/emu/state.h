/* What memory.cc, stream.cc and device.cc know of each other. */
#ifndef INF_EMU_STATE_H
#define INF_EMU_STATE_H

#include <memory>
#include <vector>

#include "kernels/cuda/emu/runtime.h"

typedef std::function<void()> emu_work;

/* Remembers the calling thread's last error, and returns it. */
cudaError_t emu_fail(cudaError_t error);
/* What a capture forbids its thread: refuses and spoils the capture. */
bool emu_is_forbidden();
int emu_device();
/* Does everything that was put into streams: all, or those that the legacy stream waits for. */
void emu_finish_all(bool also_non_blocking);

enum emu_place { EMU_PAGEABLE, EMU_PINNED, EMU_DEVICE, EMU_BEYOND };
/* Where [p, p + bytes) lies; EMU_BEYOND: it begins in an allocation and ends behind it. */
emu_place emu_place_of(const void *p, size_t bytes);

#endif
