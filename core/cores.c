/* See cores.h. The only file that sees hwloc. A claim is a socket bound to an abstract name: no two
 * processes can hold one, and none outlives its holder, however that ends. */
#include "core/cores.h"

#include "core/log.h"

#include <hwloc.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct rl_cores {
    int *claims; /* [count] sockets */
    int count;
};

/* Cores only: the rest of a machine takes time to look at. *allowed is this thread's set. */
static bool topology_open(hwloc_topology_t *topology, hwloc_cpuset_t *allowed)
{
    if (hwloc_topology_init(topology) != 0) {
        return false;
    }
    *allowed = hwloc_bitmap_alloc();
    /* the x86 component would move this thread from core to core */
    (void)hwloc_topology_set_components(*topology, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "x86");
    hwloc_topology_set_all_types_filter(*topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(*topology, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (*allowed == NULL || hwloc_topology_load(*topology) != 0 ||
        hwloc_get_cpubind(*topology, *allowed, HWLOC_CPUBIND_THREAD) != 0) {
        hwloc_bitmap_free(*allowed);
        hwloc_topology_destroy(*topology);
        return false;
    }
    return true;
}

static void topology_close(hwloc_topology_t topology, hwloc_cpuset_t allowed)
{
    hwloc_bitmap_free(allowed);
    hwloc_topology_destroy(topology);
}

/* The next core after `core` (NULL: the first) that shares a processor with `allowed`. */
static hwloc_obj_t next_core(hwloc_topology_t topology, hwloc_cpuset_t allowed, hwloc_obj_t core)
{
    do {
        core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core);
    } while (core != NULL && !hwloc_bitmap_intersects(core->cpuset, allowed));
    return core;
}

int rl_cores_allowed(void)
{
    hwloc_topology_t topology;
    hwloc_cpuset_t allowed;
    int count = 0;
    if (!topology_open(&topology, &allowed)) {
        return 1;
    }
    for (hwloc_obj_t core = NULL; (core = next_core(topology, allowed, core)) != NULL;) {
        count++;
    }
    topology_close(topology, allowed);
    return count > 0 ? count : 1;
}

/* The claim's socket, or -1 if another process has the core. */
static int claim_core(unsigned number)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int bytes =
        snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "foresight-core-%u", number);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)bytes);
    int claim = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (claim >= 0 && bind(claim, (const struct sockaddr *)&address, size) != 0) {
        close(claim);
        return -1;
    }
    return claim;
}

static void bind_helper(hwloc_topology_t topology, hwloc_cpuset_t allowed, hwloc_obj_t core,
                        pthread_t helper)
{
    hwloc_cpuset_t set = hwloc_bitmap_alloc();
    if (set != NULL && hwloc_bitmap_and(set, core->cpuset, allowed) == 0) {
        (void)hwloc_set_thread_cpubind(topology, helper, set, 0); /* only a matter of speed */
    }
    hwloc_bitmap_free(set);
}

/* Claim as many as there are threads, into objects [threads]. */
static void claim_cores(hwloc_topology_t topology, hwloc_cpuset_t allowed, int threads,
                        struct rl_cores *cores, hwloc_obj_t *objects)
{
    hwloc_obj_t core = NULL;
    while (cores->count < threads && (core = next_core(topology, allowed, core)) != NULL) {
        int claim = claim_core((unsigned)hwloc_bitmap_first(core->cpuset));
        if (claim >= 0) {
            objects[cores->count] = core;
            cores->claims[cores->count++] = claim;
        }
    }
}

static void bind_all(struct rl_pool *pool, struct rl_cores *cores, hwloc_obj_t *objects)
{
    hwloc_topology_t topology;
    hwloc_cpuset_t allowed;
    int threads = rl_pool_threads(pool);
    if (!topology_open(&topology, &allowed)) {
        return;
    }
    claim_cores(topology, allowed, threads, cores, objects);
    for (int i = 1; cores->count == threads && i < threads; i++) {
        bind_helper(topology, allowed, objects[i], rl_pool_helper(pool, i - 1));
    }
    topology_close(topology, allowed);
}

rl_status rl_cores_bind(struct rl_pool *pool, struct rl_cores **out)
{
    *out = NULL;
    size_t threads = (size_t)rl_pool_threads(pool);
    if (threads < 2) {
        return RL_OK;
    }
    struct rl_cores *cores = calloc(1, sizeof(*cores));
    hwloc_obj_t *objects = calloc(threads, sizeof(hwloc_obj_t));
    if (cores != NULL) {
        cores->claims = calloc(threads, sizeof(int));
    }
    if (cores == NULL || cores->claims == NULL || objects == NULL) {
        free(objects);
        rl_cores_release(cores);
        return rl_fail(RL_NO_MEMORY, "no memory to bind %zu threads", threads);
    }
    bind_all(pool, cores, objects);
    free(objects);
    if ((size_t)cores->count < threads) {
        rl_log(RL_LOG_DEBUG, "threads not bound: %d cores are free for %zu", cores->count, threads);
        rl_cores_release(cores);
        return RL_OK;
    }
    *out = cores;
    return RL_OK;
}

void rl_cores_release(struct rl_cores *cores)
{
    if (cores == NULL) {
        return;
    }
    for (int i = 0; i < cores->count; i++) {
        close(cores->claims[i]);
    }
    free(cores->claims);
    free(cores);
}
