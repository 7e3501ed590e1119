/* See rank_team.h. */
#include "app/rank_team.h"

#include "app/app.h"
#include "app/signals.h"
#include "core/clock.h"
#include "core/log.h"
#include "transport/world.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

static const double team_close_s = 30;
static const double team_busy_pause_s = 20e-6;
static const double team_idle_pause_s = 1e-3;

struct team_work {
    rank_team_fn work;
    void *arg;
    struct rank_team team;
    rl_status status;
    atomic_bool finished;
};

static void *compute(void *arg)
{
    struct team_work *w = arg;
    w->status = w->work(w->arg, &w->team);
    atomic_store(&w->finished, true);
    return NULL;
}

static void pump(struct team_work *w)
{
    struct collective *collective = w->team.collective;
    while (!atomic_load(&w->finished)) {
        if (!collective_mpi_progress(collective)) {
            bool active = collective_mpi_active(collective);
            rl_clock_sleep_s(NULL, active ? team_busy_pause_s : team_idle_pause_s);
        }
    }
}

static rl_status work_and_pump(struct team_work *w)
{
    pthread_t thread;
    if (w->team.collective->size == 1) {
        return w->work(w->arg, &w->team);
    }
    if (pthread_create(&thread, NULL, compute, w) != 0) {
        return rl_fail(RL_INTERNAL, "cannot start the compute thread");
    }
    pump(w);
    pthread_join(thread, NULL);
    return w->status;
}

static rl_status run(struct team_work *w, struct world *world, double timeout_s)
{
    rl_status status = world_form_equal(world);
    if (status == RL_OK) {
        rl_log_identify("rank", world_rank(world));
        w->team.local_rank = world_local_rank(world);
        status = world_size(world) > 1
                     ? collective_mpi_create(world, timeout_s, &w->team.collective)
                     : collective_local_create(&w->team.collective);
    }
    if (status == RL_OK) {
        status = rl_waits_create(NULL, &w->team.waits);
    }
    if (status == RL_OK) {
        status = signals_install();
    }
    if (status == RL_OK) {
        status = work_and_pump(w);
    }
    if (status != RL_OK && status != RL_INTERRUPTED) {
        world_note_torn(world);
    }
    collective_destroy(w->team.collective);
    rl_waits_destroy(w->team.waits);
    return status;
}

int rank_team_run(int argc, char **argv, double timeout_s, rank_team_fn work, void *arg)
{
    struct team_work w = {.work = work, .arg = arg, .team = {.timeout_s = timeout_s}};
    struct world *world = NULL;
    rl_status status = world_open(&argc, &argv, &world);
    if (status == RL_OK) {
        status = run(&w, world, timeout_s);
    }
    int exit_code = status == RL_OK            ? APP_OK
                    : status == RL_INTERRUPTED ? APP_INTERRUPTED
                                               : APP_FAILED;
    fflush(stdout);
    world_close(world, exit_code, team_close_s);
    return exit_code;
}
