/* Work that comes again, as one CUDA graph: what is queued with a key is queued as it is the first
 * time, when sizes grow memory and matrix products choose their algorithms; the second time it is
 * recorded; from then on the record is launched. Owns the records, of which the least used give
 * way.
 *
 * Invariant: a graph is launched only while every address in it stands for what it stood for when
 * it was recorded. Addresses that callers know are in the key; those of the stream's own memory,
 * and buffers given back since, make all records void. What cannot be recorded fails in the open
 * (cuda_recording), the work is then queued as it is, and so is all further work of the stream. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/stream_cuda.h"

#include "core/log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum : size_t { LANDING_BYTES = (size_t)64 << 10 }; /* results of 5000 rows */

void cuda_replay_init(struct cuda_stream *stream)
{
    const char *wanted = getenv("FORESIGHT_CUDA_GRAPHS"); /* to find a fault op by op */
    stream->replay.off = wanted != nullptr && strcmp(wanted, "0") == 0;
    for (int i = 0; i < DEVICE_MARKS; i++) {
        if (cudaEventCreateWithFlags(&stream->replay.marks[i], cudaEventDefault) != cudaSuccess) {
            (void)cudaGetLastError();
            stream->replay.marks[i] = nullptr; /* no times, then */
        }
    }
}

static void records_forget(struct cuda_replay *replay)
{
    for (int i = 0; replay->records != nullptr && i < CUDA_RECORDS; i++) {
        if (replay->records[i].graph != nullptr) {
            (void)cudaGraphExecDestroy(replay->records[i].graph);
        }
        replay->records[i] = {};
    }
}

void cuda_replay_fini(struct cuda_stream *stream)
{
    records_forget(&stream->replay);
    free(stream->replay.records);
    for (int i = 0; i < DEVICE_MARKS; i++) {
        if (stream->replay.marks[i] != nullptr) {
            (void)cudaEventDestroy(stream->replay.marks[i]);
        }
    }
}

bool cuda_recording(struct cuda_stream *stream, const char *what)
{
    if (stream->replay.recording) {
        cuda_fail(stream, what, "not while work is recorded");
    }
    return stream->replay.recording;
}

/* --- records ---------------------------------------------------------------------------------- */

/* Room for records, and for what they fetch; then void what memory that has moved makes wrong. */
static bool records_ready(struct cuda_stream *stream)
{
    struct cuda_replay *replay = &stream->replay;
    if (replay->records == nullptr) {
        replay->records =
            static_cast<struct cuda_record *>(calloc(CUDA_RECORDS, sizeof *replay->records));
        if (replay->records == nullptr || !cuda_landing_take(stream, LANDING_BYTES)) {
            return false;
        }
    }
    const uint64_t freed = __atomic_load_n(&stream->device->freed, __ATOMIC_ACQUIRE);
    if (replay->places != stream->moved + freed) { /* neither ever shrinks */
        records_forget(replay);
        replay->places = stream->moved + freed;
    }
    return true;
}

static bool record_is(const struct cuda_record *record, const struct device_work *work)
{
    return record->used > 0 && record->key_bytes == work->key_bytes &&
           memcmp(record->key, work->key, work->key_bytes) == 0;
}

/* The record of work that has been queued before; else NULL, and the next time there is one. */
static struct cuda_record *record_find(struct cuda_replay *replay, const struct device_work *work)
{
    struct cuda_record *oldest = &replay->records[0];
    assert(work->key_bytes <= DEVICE_KEY_BYTES);
    replay->calls++;
    for (int i = 0; i < CUDA_RECORDS; i++) {
        struct cuda_record *record = &replay->records[i];
        if (record_is(record, work)) {
            record->used = replay->calls;
            return record;
        }
        oldest = record->used < oldest->used ? record : oldest;
    }
    if (oldest->graph != nullptr) {
        (void)cudaGraphExecDestroy(oldest->graph);
    }
    *oldest = {};
    memcpy(oldest->key, work->key, work->key_bytes);
    oldest->key_bytes = work->key_bytes;
    oldest->used = replay->calls;
    return nullptr;
}

static void queue_deferred(struct cuda_stream *stream, const struct device_work *work)
{
    stream->replay.deferring = true;
    work->queue(work->arg);
    stream->replay.deferring = false;
}

/* The work as a graph with nothing of it done; an error stays in the stream. */
static void record_queue(struct cuda_stream *stream, const struct device_work *work,
                         cudaGraph_t *graph)
{
    const cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
    if (cuda_check(stream, cudaStreamBeginCapture(stream->handle, mode), "recording")) {
        stream->replay.recording = true;
        queue_deferred(stream, work);
        stream->replay.recording = false;
        stream->op = "replay";
        cuda_check(stream, cudaStreamEndCapture(stream->handle, graph), "recording");
    }
}

/* Record the work; false, with the stream as it was, if that fails. */
static bool record_make(struct cuda_stream *stream, const struct device_work *work,
                        struct cuda_record *record)
{
    cudaGraph_t graph = nullptr;
    record_queue(stream, work, &graph);
    if (cuda_stream_good(stream)) {
        cuda_check(stream, cudaGraphInstantiate(&record->graph, graph, 0), "making a graph");
    }
    if (graph != nullptr) {
        (void)cudaGraphDestroy(graph);
    }
    memcpy(record->fetches, stream->fetches, sizeof record->fetches);
    record->fetch_count = stream->fetch_count;
    record->landed = stream->landed;
    stream->fetch_count = 0;
    stream->landed = 0;
    stream->scratch.used = 0;
    return cuda_stream_good(stream);
}

static bool record_launch(struct cuda_stream *stream, const struct cuda_record *record)
{
    if (!cuda_check(stream, cudaGraphLaunch(record->graph, stream->handle), "launching a graph")) {
        return false;
    }
    memcpy(stream->fetches, record->fetches, sizeof record->fetches);
    stream->fetch_count = record->fetch_count;
    stream->landed = record->landed;
    return true;
}

/* --- replaying -------------------------------------------------------------------------------- */

/* From now on everything is queued as it is; what is wrong with the device itself shows there. */
static void replay_give_up(struct cuda_stream *stream)
{
    rl_log(RL_LOG_INFO, "no CUDA graphs from here on: %s", stream->text);
    stream->replay.off = true;
    cuda_forgive(stream);
    records_forget(&stream->replay);
}

/* Queue by a graph; false if the work must be queued as it is. */
static bool replay_graph(struct cuda_stream *stream, const struct device_work *work)
{
    const struct cuda_replay *replay = &stream->replay;
    if (replay->off || replay->paused || work->key == nullptr || !cuda_stream_good(stream)) {
        return false;
    }
    if (stream->fetch_count > 0) {
        cuda_wait(stream); /* for results that are still to land */
    }
    struct cuda_record *record =
        records_ready(stream) ? record_find(&stream->replay, work) : nullptr;
    if (record == nullptr) {
        return false;
    }
    if ((record->graph != nullptr || record_make(stream, work, record)) &&
        record_launch(stream, record)) {
        return true;
    }
    replay_give_up(stream);
    return false;
}

void cuda_replay_run(struct device_stream *base, const struct device_work *work)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    stream->op = "replay";
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    if (!replay_graph(stream, work)) {
        queue_deferred(stream, work);
    }
}

void cuda_replay_allow(struct device_stream *base, bool allowed)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    stream->replay.paused = !allowed;
}

/* --- marks ------------------------------------------------------------------------------------ */

void cuda_replay_mark(struct device_stream *base, enum device_mark mark)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    const unsigned flags =
        stream->replay.recording ? cudaEventRecordExternal : cudaEventRecordDefault;
    if (stream->replay.marks[mark] != nullptr && cuda_stream_good(stream)) {
        cuda_check(stream,
                   cudaEventRecordWithFlags(stream->replay.marks[mark], stream->handle, flags),
                   "mark");
    }
}

double cuda_replay_marked_s(struct device_stream *base, enum device_mark from, enum device_mark to)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    float ms = 0;
    if (!cuda_stream_good(stream) || stream->replay.marks[from] == nullptr ||
        stream->replay.marks[to] == nullptr ||
        cudaEventElapsedTime(&ms, stream->replay.marks[from], stream->replay.marks[to]) !=
            cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return (double)ms * 1e-3;
}
