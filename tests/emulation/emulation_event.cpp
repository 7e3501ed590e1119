/* Events of the emulated GPU: points in a stream's work, and the times at which it came by. */
#include "tests/emulation/emulation_internal.h"

#include <chrono>

std::function<void()> emulation_stamp(cudaEvent_t event)
{
    std::shared_ptr<double> time_s = event->time_s;
    return [time_s] {
        const auto now = std::chrono::steady_clock::now().time_since_epoch();
        *time_s = std::chrono::duration<double>(now).count();
    };
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    *out = new emulation_event();
    if ((flags & cudaEventDisableTiming) == 0) {
        (*out)->time_s = std::make_shared<double>(-1);
    }
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

/* In a recording it orders the recorded work alone: the host cannot wait for it. */
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    emulation_guard hold;
    event->recorded = emulation_named(stream)->capture != nullptr;
    if (event->time_s != nullptr) {
        emulation_enqueue(stream, emulation_stamp(event));
    }
    event->stream = emulation_named(stream);
    event->upto = event->stream->queued;
    return emulation_result(cudaSuccess);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    emulation_guard hold;
    if (event->recorded || emulation_recording()) {
        return emulation_result(emulation_spoil());
    }
    if (event->stream != nullptr) {
        emulation_run_until(event->stream, event->upto);
    }
    return emulation_result(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    emulation_guard hold;
    if (event->recorded || emulation_recording()) {
        return emulation_result(emulation_spoil());
    }
    bool done = event->stream == nullptr || event->stream->executed >= event->upto;
    const cudaError_t broken = emulation_result(cudaSuccess);
    return broken != cudaSuccess ? broken : done ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    emulation_guard hold;
    if (start->time_s == nullptr || end->time_s == nullptr || start->stream == nullptr ||
        end->stream == nullptr) {
        return emulation_result(cudaErrorInvalidResourceHandle);
    }
    if (cudaEventQuery(start) != cudaSuccess || cudaEventQuery(end) != cudaSuccess) {
        return emulation_result(cudaErrorNotReady);
    }
    *ms = (float)((*end->time_s - *start->time_s) * 1e3);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    emulation_guard hold;
    if (emulation_recording()) {
        return emulation_result(emulation_spoil());
    }
    emulation_event at = *event;
    emulation_enqueue(stream, [at] {
        if (at.stream != nullptr) {
            emulation_run_until(at.stream, at.upto);
        }
    });
    return emulation_result(cudaSuccess);
}
