/* Recordings of a stream's work, and graphs made of them. As on a GPU: what is recorded keeps its
 * arguments and addresses by value; while a thread records (cudaStreamCaptureModeThreadLocal) its
 * calls that wait, allocate, free, ask about events, copy from or to ordinary memory, or use the
 * stream named NULL are errors, and spoil the recording. */
#include "tests/emulation/emulation_internal.h"

namespace
{
std::vector<emulation_stream *> recorded; /* streams, while they are */
size_t graphs;                            /* ready to be launched */
uint64_t launches;
bool failing;
} // namespace

size_t emulation_graphs(void)
{
    return graphs;
}

uint64_t emulation_graph_launches(void)
{
    return launches;
}

void emulation_fail_graphs(int fail)
{
    failing = fail != 0;
}

bool emulation_recording()
{
    for (const emulation_stream *stream : recorded) {
        if (stream->capture->owner == std::this_thread::get_id()) {
            return true;
        }
    }
    return false;
}

cudaError_t emulation_spoil()
{
    for (emulation_stream *stream : recorded) {
        if (stream->capture->owner == std::this_thread::get_id()) {
            stream->capture->spoilt = true;
        }
    }
    return cudaErrorStreamCaptureUnsupported;
}

cudaError_t emulation_record(emulation_stream *stream, std::function<void()> item,
                             cudaEvent_t event)
{
    if (stream->capture->spoilt) {
        return cudaErrorStreamCaptureInvalidated;
    }
    stream->capture->nodes.push_back({std::move(item), event});
    return cudaSuccess;
}

/* --- the runtime's functions ------------------------------------------------------------------ */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    emulation_guard hold;
    if (stream == nullptr || stream->capture != nullptr) {
        return emulation_result(cudaErrorStreamCaptureUnsupported);
    }
    stream->capture.reset(new emulation_graph());
    stream->capture->owner = std::this_thread::get_id();
    recorded.push_back(stream);
    return emulation_result(cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out)
{
    emulation_guard hold;
    *out = nullptr;
    if (stream->capture == nullptr || stream->capture->owner != std::this_thread::get_id()) {
        return emulation_result(cudaErrorInvalidValue);
    }
    std::unique_ptr<emulation_graph> graph = std::move(stream->capture);
    for (size_t i = 0; i < recorded.size(); i++) {
        if (recorded[i] == stream) {
            recorded.erase(recorded.begin() + (ptrdiff_t)i);
            break;
        }
    }
    if (graph->spoilt) {
        return emulation_result(cudaErrorStreamCaptureInvalidated);
    }
    *out = graph.release();
    return emulation_result(cudaSuccess);
}

/* In a recording the event becomes a part of it, which the host may wait for and ask the time of
 * once it was launched. */
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    emulation_guard hold;
    if (flags == cudaEventRecordDefault) {
        return cudaEventRecord(event, stream);
    }
    if (stream == nullptr || stream->capture == nullptr) {
        return emulation_result(cudaErrorInvalidValue);
    }
    event->recorded = false;
    std::function<void()> work = [] {};
    return emulation_result(
        emulation_record(stream, event->time_s != nullptr ? emulation_stamp(event) : work, event));
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long)
{
    emulation_guard hold;
    if (failing || emulation_recording()) {
        return emulation_result(cudaErrorMemoryAllocation);
    }
    *out = new emulation_graph(*graph);
    graphs++;
    return emulation_result(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream)
{
    emulation_guard hold;
    if (stream == nullptr || emulation_recording()) {
        return emulation_result(emulation_spoil());
    }
    for (const emulation_node &node : graph->nodes) {
        emulation_push(stream, node.work);
        if (node.event != nullptr) {
            node.event->stream = stream;
            node.event->upto = stream->queued;
        }
    }
    launches++;
    return emulation_result(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    emulation_guard hold;
    graphs -= graph != nullptr ? 1 : 0;
    delete graph;
    return cudaSuccess;
}
