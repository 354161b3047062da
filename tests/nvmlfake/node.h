/* The simulated GPUs of a mapped file (perseusd/gpus/simulated_file.py), read and written from C.
 *
 * The same physics as perseusd/gpus/physics.py: a test compares the two. Clock records are appended
 * under the file's flock, as Python does; nothing else is ever written.
 */
#ifndef NODE_H
#define NODE_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_CLOCKS 128
#define MAX_GPUS 1024
#define UNLOCKED 0

struct spec {
    char name[96];
    int clocks, mhz[MAX_CLOCKS]; /* ascending */
    double blocking_w, idle_w, limit_w; /* limit_w: 0 for none */
    int64_t tick_ns, latency_ns, settle_ns;
};

/* What a GPU is at one moment. */
struct moment {
    double energy_j, power_w;
    int clock_mhz;
    bool working, limited, capped; /* limited: by its record's limit; capped: by its power limit */
    int64_t reasons;               /* of the limit */
};

extern struct spec spec;
extern int gpus;

/* False where the file is none of ours. A second call does nothing. */
bool node_open(const char *path);
struct moment node_at(int gpu, int64_t time_ns);
double node_counter_j(int gpu, int64_t now_ns);
/* The process that computes on it, or 0. */
int node_pid(int gpu);
bool node_supports(int mhz);
/* A lock, or UNLOCKED; takes the write's latency. False where this user may not write. */
bool node_write(int gpu, int mhz);
bool node_locked(int gpu);
int64_t now_ns(void);
void sleep_ns(int64_t ns);

#endif
