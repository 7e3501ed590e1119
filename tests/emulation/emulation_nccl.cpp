/* NCCL for emulated GPUs: ranks are processes of one machine that meet in shared memory named by
 * the unique id. Non-blocking communicators only. What NCCL leaves undefined or refuses ends the
 * test: two ranks on one GPU, a call before the last one has ended or after one has failed, counts
 * that differ, a communicator used after its end. Every other call answers ncclInProgress first. A
 * rank's part is summed from its right neighbour round to itself, as a ring does: who takes two
 * ways to one sum sees other bits.
 *
 * FORESIGHT_EMULATED_NCCL=WHAT:CALL:RANK lets something happen to a rank at its CALL-th collective
 * (0: while it meets the others): `fail`: an error, `hang`: the GPU's work never ends, `die`:
 * SIGKILL, `none`: there is no NCCL on this rank, whatever CALL is. */
#include "tests/emulation/emulation.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <cstdio>
#include <fcntl.h>
#include <memory>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

namespace
{
enum { RANKS = 8, POLLS = 3 };
enum : size_t { AREA_BYTES = (size_t)64 << 20, HEAD_BYTES = 4096 };

struct seat {
    std::atomic<int> joined;
    int gpu;
    std::atomic<uint64_t> posted, done; /* collectives: input given, result taken */
    int kind;
    size_t count;
};

struct segment {
    seat seats[RANKS];
};
static_assert(sizeof(segment) <= HEAD_BYTES, "areas follow the seats");

enum kind { REDUCE_SCATTER = 1, ALL_GATHER };

/* What outlives the communicator: work of its that is still queued. */
struct room {
    segment *shared = nullptr;
    size_t mapped = 0;
    int rank = 0, size = 0;
    std::atomic<bool> aborted{false};

    char *area(int of) const
    {
        return reinterpret_cast<char *>(shared) + HEAD_BYTES + (size_t)of * AREA_BYTES;
    }
    ~room()
    {
        if (shared != nullptr) {
            munmap(shared, mapped);
        }
    }
};

struct trouble {
    char what[8] = "";
    int call = -1, rank = -1;
};

trouble given_trouble()
{
    trouble t;
    const char *text = getenv("FORESIGHT_EMULATED_NCCL");
    if (text != nullptr && sscanf(text, "%7[a-z]:%d:%d", t.what, &t.call, &t.rank) != 3) {
        emulation_fail("FORESIGHT_EMULATED_NCCL=%s: expected WHAT:CALL:RANK", text);
    }
    return t;
}
} // namespace

struct emulation_comm {
    std::shared_ptr<room> at;
    char name[128];
    bool met = false, finalized = false;
    int polls = 0; /* answers "in progress" that are still to come */
    int calls = 0; /* collectives so far */
    ncclResult_t error = ncclSuccess;
};

namespace
{
/* Whether the trouble that was asked for is due: it happens here if the caller need do nothing. */
bool troubled(emulation_comm *comm, const char *what)
{
    const trouble t = given_trouble();
    return t.rank == comm->at->rank && t.call == comm->calls && strcmp(t.what, what) == 0;
}

void meet_trouble(emulation_comm *comm)
{
    if (troubled(comm, "die")) {
        raise(SIGKILL);
    }
    comm->error = troubled(comm, "fail") ? ncclSystemError : comm->error;
}

/* All ranks sit, on GPUs of their own. */
bool all_met(emulation_comm *comm)
{
    const room &at = *comm->at;
    for (int rank = 0; rank < at.size; rank++) {
        if (at.shared->seats[rank].joined == 0) {
            return false;
        }
    }
    for (int rank = 0; rank < at.size; rank++) {
        if (rank != at.rank && at.shared->seats[rank].gpu == at.shared->seats[at.rank].gpu) {
            emulation_fail("NCCL: ranks %d and %d are on GPU %d", rank, at.rank,
                           at.shared->seats[rank].gpu);
        }
    }
    shm_unlink(comm->name); /* the first to come here removes it */
    return true;
}

void must_be_free(const emulation_comm *comm, const char *call)
{
    if (comm == nullptr || !comm->met || comm->polls > 0 || comm->finalized ||
        comm->error != ncclSuccess) {
        emulation_fail("NCCL: %s while the communicator is not ready for it", call);
    }
}

struct collective {
    std::shared_ptr<room> at;
    int kind;
    const char *from;
    char *to;
    size_t count, width; /* per rank */
    uint64_t number;
    bool posted, hangs;
};

bool everybody(const room &at, std::atomic<uint64_t> seat::*counter, uint64_t number)
{
    for (int rank = 0; rank < at.size; rank++) {
        if (at.shared->seats[rank].*counter < number) {
            return false;
        }
    }
    return true;
}

void post(const collective &c)
{
    seat &own = c.at->shared->seats[c.at->rank];
    const size_t parts = c.kind == REDUCE_SCATTER ? (size_t)c.at->size : 1;
    emulation_enter();
    memcpy(c.at->area(c.at->rank), c.from, parts * c.count * c.width);
    emulation_leave();
    own.kind = c.kind;
    own.count = c.count;
    own.posted = c.number;
}

void take_sum(const collective &c)
{
    const room &at = *c.at;
    float *to = reinterpret_cast<float *>(c.to);
    for (int step = 1; step <= at.size; step++) {
        const float *part = reinterpret_cast<const float *>(at.area((at.rank + step) % at.size)) +
                            (size_t)at.rank * c.count;
        for (size_t i = 0; i < c.count; i++) {
            to[i] = step == 1 ? part[i] : to[i] + part[i];
        }
    }
}

void take(const collective &c)
{
    const room &at = *c.at;
    emulation_enter();
    if (c.kind == REDUCE_SCATTER) {
        take_sum(c);
    } else {
        for (int rank = 0; rank < at.size; rank++) {
            memcpy(c.to + (size_t)rank * c.count, at.area(rank), c.count);
        }
    }
    emulation_leave();
    at.shared->seats[at.rank].done = c.number;
}

/* One look at a collective under way; true when it is over. */
bool advance(collective *c)
{
    const room &at = *c->at;
    if (at.aborted) {
        return true;
    }
    if (c->hangs || (!c->posted && !everybody(at, &seat::done, c->number - 1))) {
        return false;
    }
    if (!c->posted) {
        post(*c);
        c->posted = true;
    }
    if (!everybody(at, &seat::posted, c->number)) {
        return false;
    }
    for (int rank = 0; rank < at.size; rank++) {
        const seat &other = at.shared->seats[rank];
        if (other.kind != c->kind || other.count != c->count) {
            emulation_fail("NCCL: rank %d calls %d of %zu, rank %d calls %d of %zu", at.rank,
                           c->kind, c->count, rank, other.kind, other.count);
        }
    }
    take(*c);
    return true;
}

ncclResult_t launch(emulation_comm *comm, collective c, cudaStream_t stream)
{
    comm->calls++;
    meet_trouble(comm);
    c.at = comm->at;
    c.number = (uint64_t)comm->calls;
    c.hangs = troubled(comm, "hang") || comm->error != ncclSuccess;
    if (c.count * c.width * (size_t)c.at->size > AREA_BYTES) {
        emulation_fail("NCCL: %zu elements a rank: more than the emulation has room for", c.count);
    }
    auto shared = std::make_shared<collective>(c);
    emulation_enqueue_steps(stream, [shared] { return advance(shared.get()); });
    comm->polls = comm->calls % 2 == 1 ? POLLS : 0;
    return comm->polls > 0 ? ncclInProgress : ncclSuccess;
}

segment *open_segment(const char *name, size_t bytes)
{
    int fd = shm_open(name, O_RDWR | O_CREAT, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) {
        return nullptr;
    }
    void *map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return map != MAP_FAILED ? static_cast<segment *>(map) : nullptr;
}
} // namespace

ncclResult_t ncclGetVersion(int *version)
{
    const trouble t = given_trouble();
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    *version = NCCL_VERSION_CODE;
    bool none =
        strcmp(t.what, "none") == 0 && rank != nullptr && strtol(rank, nullptr, 10) == t.rank;
    return none ? ncclSystemError : ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    uint64_t noise = 0;
    int fd = open("/dev/urandom", O_RDONLY);
    bool drawn = fd >= 0 && read(fd, &noise, sizeof noise) == (ssize_t)sizeof noise;
    close(fd);
    (void)snprintf(id->internal, sizeof id->internal, "/foresight_nccl_%016llx",
                   (unsigned long long)noise);
    return drawn ? ncclSuccess : ncclSystemError;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    if (config == nullptr || config->size != sizeof *config || config->blocking != 0 ||
        ranks > RANKS || rank < 0 || rank >= ranks) {
        emulation_fail("NCCL: a communicator that blocks, or rank %d of %d", rank, ranks);
    }
    auto comm = new emulation_comm;
    comm->at = std::make_shared<room>();
    comm->at->rank = rank;
    comm->at->size = ranks;
    comm->at->mapped = HEAD_BYTES + (size_t)ranks * AREA_BYTES;
    memcpy(comm->name, id.internal, sizeof comm->name);
    comm->at->shared = open_segment(comm->name, comm->at->mapped);
    if (comm->at->shared == nullptr) {
        delete comm;
        return ncclSystemError;
    }
    *out = comm;
    meet_trouble(comm);
    if (comm->error == ncclSuccess) {
        seat &own = comm->at->shared->seats[rank];
        (void)cudaGetDevice(&own.gpu);
        own.joined = 1;
    }
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    comm->met = comm->met || (comm->error == ncclSuccess && all_met(comm));
    bool waiting = !comm->met || comm->polls > 0;
    *error = comm->error != ncclSuccess ? comm->error : waiting ? ncclInProgress : ncclSuccess;
    comm->polls -= comm->polls > 0;
    return ncclSuccess;
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    must_be_free(comm, "ncclReduceScatter");
    if (type != ncclFloat || op != ncclSum) {
        emulation_fail("NCCL: the emulation sums floats");
    }
    return launch(comm,
                  {nullptr, REDUCE_SCATTER, static_cast<const char *>(from),
                   static_cast<char *>(to), count, sizeof(float), 0, false, false},
                  stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    must_be_free(comm, "ncclAllGather");
    if (type != ncclInt8) {
        emulation_fail("NCCL: the emulation gathers bytes");
    }
    return launch(comm,
                  {nullptr, ALL_GATHER, static_cast<const char *>(from), static_cast<char *>(to),
                   count, 1, 0, false, false},
                  stream);
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    must_be_free(comm, "ncclCommFinalize");
    comm->finalized = true;
    comm->polls = POLLS;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm->finalized || comm->polls > 0) {
        emulation_fail("NCCL: ncclCommDestroy before ncclCommFinalize has ended");
    }
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->at->aborted = true;
    shm_unlink(comm->name);
    delete comm;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    return result == ncclSystemError   ? "unhandled system error"
           : result == ncclRemoteError ? "remote process exited or there was a network error"
                                       : "internal error";
}

const char *ncclGetLastError(ncclComm_t)
{
    return "asked for by the test";
}
