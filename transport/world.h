/* The ranks of a run and their roles. A process that mpirun started joins MPI; any other is a world
 * of size 1 that never touches MPI. After world_open nothing here is collective between learners
 * and workers but world_close, which has a deadline: a dead or hanging peer cannot hold a rank. */
#ifndef FORESIGHT_TRANSPORT_WORLD_H
#define FORESIGHT_TRANSPORT_WORLD_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

struct world;

enum world_role {
    WORLD_LEARNER, /* learns only */
    WORLD_WORKER,  /* rolls out only */
    WORLD_BOTH     /* world of size 1: learns and rolls out by turns */
};

/* Join the world. Main thread only; it becomes the only thread that may call MPI. All ranks must
 * call; if they have not met after five minutes the process ends. argc/argv are given to MPI_Init
 * and may be NULL. Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL (MPI's own text). */
rl_status world_open(int *argc, char ***argv, struct world **out);

/* Fix the roles: ranks below `learners` learn, the others roll out; makes the learners'
 * communicator. Every learner must call; workers may. Once, main thread. Errors: RL_INVALID
 * (learners < 1, or no rank left to roll out in a world larger than 1, or a world of 1 with more
 * than one learner), RL_INTERNAL. */
rl_status world_form(struct world *world, int learners);

/* The same where every rank learns and rolls out in turn. All ranks must call. Once, main thread.
 * Errors: RL_INVALID (roles fixed before), RL_UNSUPPORTED (a seat of a lost rank), RL_INTERNAL. */
rl_status world_form_equal(struct world *world);

/* This rank's number and place; fixed by world_open. Any thread. */
int world_rank(const struct world *world);
int world_size(const struct world *world);
int world_local_rank(const struct world *world); /* 0-based on its node, by world rank */
int world_local_size(const struct world *world); /* ranks on this node */
int world_node(const struct world *world);       /* node index; nodes numbered by lowest rank */
int world_node_count(const struct world *world);
int world_node_of(const struct world *world, int rank);
const char *world_host(const struct world *world); /* this node's name; borrowed */
bool world_has_mpi(const struct world *world);     /* false: started without mpirun */

/* Started by rank 0 for the seat of a rank that was lost: a world of the same size and rank,
 * without MPI, that can talk to rank 0 only. Any thread. */
bool world_has_joined(const struct world *world);
uint32_t world_incarnation(const struct world *world); /* of this process; 0: mpirun's own */
int world_socket(const struct world *world); /* to rank 0, given away once; -1 unless joined */

/* This process's index in its node's weight arena: no other process ever has the same, so that one
 * that was given up and wakes again cannot undo its successor's pins. */
int world_reader(const struct world *world);

/* A world without mpirun: this process is rank 0, and the seats of all others are empty until it
 * starts processes for them. Any thread. */
bool world_is_hosted(const struct world *world);

/* The environment variable whose value, a number of ranks > 1, makes a process that mpirun did not
 * start rank 0 of such a world. */
#define WORLD_HOSTED_VARIABLE "FORESIGHT_RANKS"

/* Pid of mpirun's process of `rank`; whether it can be seen from here (same node, and not hidden by
 * a container); whether it was seen and has ended, which is known long before its silence tells. */
int64_t world_rank_pid(const struct world *world, int rank);
bool world_rank_is_seen(const struct world *world, int rank);
bool world_rank_has_ended(const struct world *world, int rank);

/* The next process for a lost rank's seat. */
struct world_successor {
    int rank;
    uint32_t incarnation; /* >= 1, one more than the last */
    int reader;           /* see world_reader */
};

/* Start `arguments` (NULL-terminated; [0] a path) for the seat, on the lost rank's cores. Caller
 * owns *pid (waitpid) and *fd (a socket to it). Rank 0's main thread. Errors: RL_UNSUPPORTED (the
 * rank is on another node), RL_IO, RL_NO_MEMORY. */
rl_status world_start_successor(const struct world *world, const struct world_successor *successor,
                                char *const *arguments, int64_t *pid, int *fd);

/* Pid of the process that leads this node (local rank 0); names the node's shared arena. */
int64_t world_node_leader_pid(const struct world *world);

int world_learners(const struct world *world); /* 0 before world_form */
enum world_role world_role(const struct world *world, int rank);
const char *world_role_name(enum world_role role); /* "learner", "worker", "both"; static */

/* Remember that `rank` is lost: world_close then waits for nobody. Any thread. */
void world_note_lost(struct world *world, int rank);

/* The same where it is not known who is lost (another rank says that somebody is). Any thread. */
void world_note_torn(struct world *world);
bool world_is_whole(const struct world *world); /* false after either */

/* Rank 0 has given this rank up (it was silent for too long): it shall leave quietly. Without
 * --enable-recovery leaving would end the job, so world_close then stays until rank 0 has ended.
 * Any thread. */
void world_note_disowned(struct world *world);
bool world_is_disowned(const struct world *world);

/* Leave. Where all ranks live it waits (at most timeout_s) until every rank has come here, then
 * finalizes MPI. If somebody is missing, or finalizing hangs, this process flushes its streams and
 * ends by _exit(exit_code) without returning. mpirun --enable-recovery reports success whatever its
 * ranks return; there a failing rank 0 (exit_code not 0), or any failing rank once rank 0 is dead,
 * also ends mpirun by SIGTERM, so that the job's status is not a lie. Frees `world`. Takes NULL.
 * Main thread. */
void world_close(struct world *world, int exit_code, double timeout_s);

/* End the whole job now with `exit_code` (> 0): MPI_Abort where there is MPI. Does not return. */
void world_abort(struct world *world, int exit_code) __attribute__((noreturn));

#endif
