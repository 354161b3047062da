#define _GNU_SOURCE
#include "node.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* As in perseusd/gpus/simulated_file.py. */
#define MAGIC "PERSGPU2"
#define SLOTS 64
#define HEADER 24
#define PID_WORD 1
#define GENERATION_WORD 2
#define WRITES_WORD 3
#define CLOCKS_AT 64
#define CURVES 32
#define NS 1000000000LL

struct clock {
    uint64_t number;
    int64_t effective_ns, mhz, limit_mhz, reasons;
};
struct activity {
    uint64_t number;
    int64_t start_ns;
    double energy_j;
    int64_t kind, generation; /* kind below 0: waiting (-1) or idle (-2) */
    double factor;
};
struct curve {
    double values[2 * MAX_CLOCKS]; /* times, then energies, without a gap between them */
};
struct clock_ring {
    uint64_t count;
    struct clock records[SLOTS];
};
struct activity_ring {
    uint64_t count;
    struct activity records[SLOTS];
};
struct block {
    uint64_t words[CLOCKS_AT / 8];
    struct clock_ring clocks;
    struct activity_ring activities;
    struct curve banks[2][CURVES];
};
struct history { /* ascending */
    int length;
    struct clock records[SLOTS];
};

struct spec spec;
int gpus;
static char node_path[4096];
static char *memory;
static size_t page, block_size;
static bool writable;
static double shown_j[MAX_GPUS];

int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

void sleep_ns(int64_t ns) {
    struct timespec left = {ns / NS, ns % NS};
    while (ns > 0 && nanosleep(&left, &left))
        ;
}

static size_t offset_of(int gpu) { return 2 * page + (size_t)gpu * block_size; }

static struct block *block_of(int gpu) { return (struct block *)(memory + offset_of(gpu)); }

/* The value of a key in the specification, which json.dumps wrote; an empty text where it is not. */
static const char *value_of(const char *text, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(text, quoted);
    return at ? at + strlen(quoted) : "";
}

static bool read_spec(const char *text) {
    const char *name = value_of(text, "name");
    const char *clock = value_of(text, "supported_clocks_mhz");
    sscanf(name, "\"%95[^\"]", spec.name);
    for (spec.clocks = 0; *clock && *clock != ']' && spec.clocks < MAX_CLOCKS;) {
        char *end;
        spec.mhz[spec.clocks++] = (int)strtol(clock + 1, &end, 10);
        clock = end;
    }
    spec.blocking_w = atof(value_of(text, "blocking_power_w"));
    spec.idle_w = atof(value_of(text, "idle_power_w"));
    spec.limit_w = atof(value_of(text, "power_limit_w")); /* null reads as 0 */
    spec.tick_ns = llround(atof(value_of(text, "counter_tick_s")) * NS);
    spec.latency_ns = llround(atof(value_of(text, "write_latency_s")) * NS);
    spec.settle_ns = llround(atof(value_of(text, "settle_s")) * NS);
    return spec.name[0] && spec.clocks && spec.tick_ns;
}

static bool read_header(size_t size) {
    uint64_t count, length;
    char text[8192] = "";
    memcpy(&count, memory + 8, 8);
    memcpy(&length, memory + 16, 8);
    if (memcmp(memory, MAGIC, 8) || !count || count > MAX_GPUS || length >= sizeof text ||
        length > 2 * page - HEADER || size != 2 * page + count * block_size)
        return false;
    memcpy(text, memory + HEADER, length);
    gpus = (int)count;
    return read_spec(text);
}

bool node_open(const char *path) {
    struct stat status;
    if (memory)
        return true;
    page = (size_t)sysconf(_SC_PAGESIZE);
    block_size = (sizeof(struct block) + page - 1) / page * page;
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    writable = descriptor >= 0;
    if (!writable) /* as for one who may read GPUs and not write them */
        descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return false;
    int may = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    if (fstat(descriptor, &status) || (size_t)status.st_size < 2 * page)
        memory = MAP_FAILED;
    else
        memory = mmap(NULL, (size_t)status.st_size, may, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (memory == MAP_FAILED || !read_header((size_t)status.st_size)) {
        memory = NULL;
        return false;
    }
    snprintf(node_path, sizeof node_path, "%s", path);
    return true;
}

static uint64_t count_of(const uint64_t *count) { return __atomic_load_n(count, __ATOMIC_ACQUIRE); }

/* The oldest record that readers may look at, as in ring.py. */
static uint64_t oldest(uint64_t count) { return count >= SLOTS ? count - SLOTS + 1 : 0; }

static struct activity activity_at(const struct activity_ring *ring, int64_t time_ns) {
    struct activity found = {0};
    for (int tries = 0; tries < 8; tries++) {
        uint64_t count = count_of(&ring->count), number = count;
        bool overtaken = false;
        while (number-- > oldest(count)) {
            struct activity record = ring->records[number % SLOTS];
            overtaken = record.number != number || count_of(&ring->count) >= number + SLOTS;
            if (overtaken)
                break;
            found = record;
            if (record.start_ns <= time_ns)
                return found;
        }
        if (!overtaken)
            return found; /* the oldest there is */
    }
    return found;
}

static struct history history_since(const struct clock_ring *ring, int64_t since_ns) {
    struct history history = {0};
    uint64_t count = count_of(&ring->count), number = count;
    int at = SLOTS;
    while (number-- > oldest(count)) {
        struct clock record = ring->records[number % SLOTS];
        if (record.number != number || count_of(&ring->count) >= number + SLOTS)
            break;
        history.records[--at] = record;
        if (record.effective_ns <= since_ns)
            break;
    }
    history.length = SLOTS - at;
    memmove(history.records, history.records + at, sizeof(struct clock) * (size_t)history.length);
    return history;
}

static int index_of(int64_t mhz) {
    for (int i = 0; mhz && i < spec.clocks; i++)
        if (spec.mhz[i] == mhz)
            return i;
    return spec.clocks - 1; /* 0: no lock, or no limit */
}

static int clock_index(const struct clock *record) {
    int locked = index_of(record->mhz), limit = index_of(record->limit_mhz);
    return locked < limit ? locked : limit;
}

static const struct clock *clock_at(const struct history *history, int64_t time_ns) {
    int at = 0;
    while (at + 1 < history->length && history->records[at + 1].effective_ns <= time_ns)
        at++;
    return &history->records[at];
}

static int cap_of(const double *times, const double *energies) {
    int cap = spec.clocks - 1;
    while (spec.limit_w > 0 && cap > 0 && energies[cap] / times[cap] > spec.limit_w)
        cap--;
    return cap;
}

/* `run_work` of physics.py: what `activity` has drawn by `until_ns`; and when it ended, or 0. */
static double run_work(const struct activity *activity, const struct history *history,
                       const double *times, int cap, int64_t until_ns, int64_t *end_ns) {
    const double *energies = times + spec.clocks;
    double fraction = 0, energy_j = 0;
    int64_t begin_ns = activity->start_ns;
    int at = (int)(clock_at(history, begin_ns) - history->records);
    *end_ns = 0;
    while (begin_ns < until_ns) {
        bool last = at + 1 >= history->length || history->records[at + 1].effective_ns >= until_ns;
        int64_t stop_ns = last ? until_ns : history->records[at + 1].effective_ns;
        int index = clock_index(&history->records[at]);
        index = index < cap ? index : cap;
        double duration_s = activity->factor * times[index];
        int64_t left_ns = llrint((1 - fraction) * duration_s * NS);
        if (stop_ns - begin_ns >= left_ns) {
            *end_ns = begin_ns + left_ns;
            return energy_j + (1 - fraction) * activity->factor * energies[index];
        }
        double step = (double)(stop_ns - begin_ns) / NS / duration_s;
        fraction += step;
        energy_j += step * activity->factor * energies[index];
        begin_ns = stop_ns;
        at++;
    }
    return energy_j;
}

struct moment node_at(int gpu, int64_t time_ns) {
    const struct block *block = block_of(gpu);
    struct activity activity = activity_at(&block->activities, time_ns);
    struct history history = history_since(&block->clocks, activity.start_ns);
    const struct clock *record = clock_at(&history, time_ns);
    int index = clock_index(record);
    struct moment moment = {.energy_j = activity.energy_j};
    double waiting_w = activity.kind == -2 ? spec.idle_w : spec.blocking_w;
    double since_s = (double)(time_ns - activity.start_ns) / NS;
    moment.limited = index < index_of(record->mhz);
    moment.reasons = moment.limited ? record->reasons : 0;
    moment.power_w = waiting_w;
    if (activity.kind >= 0 && activity.generation >= (int64_t)block->words[GENERATION_WORD] - 1) {
        const double *times = block->banks[activity.generation % 2][activity.kind].values;
        int cap = cap_of(times, times + spec.clocks);
        int64_t end_ns;
        moment.energy_j += run_work(&activity, &history, times, cap, time_ns, &end_ns);
        moment.working = !end_ns;
        if (moment.working) {
            moment.capped = cap < index;
            index = moment.capped ? cap : index;
            moment.power_w = times[spec.clocks + index] / times[index];
        } else
            moment.energy_j += (double)(time_ns - end_ns) / NS * spec.blocking_w;
    } else if (activity.kind < 0 && since_s > 0)
        moment.energy_j += since_s * waiting_w;
    moment.clock_mhz = spec.mhz[index];
    return moment;
}

double node_counter_j(int gpu, int64_t now) {
    int64_t phase_ns = gpu * 618033989LL % spec.tick_ns; /* GPUs do not tick together */
    double energy_j = node_at(gpu, now - (now - phase_ns) % spec.tick_ns).energy_j;
    if (energy_j > shown_j[gpu]) /* it never goes back for one reader */
        shown_j[gpu] = energy_j;
    return shown_j[gpu];
}

int node_pid(int gpu) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};
    int descriptor = open(node_path, O_RDONLY | O_CLOEXEC);
    lock.l_start = (off_t)offset_of(gpu);
    bool asked = descriptor >= 0 && !fcntl(descriptor, F_OFD_GETLK, &lock);
    if (descriptor >= 0)
        close(descriptor);
    return asked && lock.l_type != F_UNLCK ? (int)block_of(gpu)->words[PID_WORD] : 0;
}

bool node_supports(int mhz) { return mhz && spec.mhz[index_of(mhz)] == mhz; }

bool node_locked(int gpu) {
    struct history history = history_since(&block_of(gpu)->clocks, INT64_MAX);
    return history.records[0].mhz != UNLOCKED;
}

bool node_write(int gpu, int mhz) {
    struct block *block = block_of(gpu);
    int descriptor = writable ? open(node_path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0)
        return false;
    while (flock(descriptor, LOCK_EX))
        ;
    sleep_ns(spec.latency_ns);
    struct history newest = history_since(&block->clocks, INT64_MAX);
    struct clock record = newest.records[0];
    int64_t effective_ns = now_ns() + spec.settle_ns;
    if (effective_ns > record.effective_ns)
        record.effective_ns = effective_ns;
    record.mhz = mhz;
    record.number = block->clocks.count;
    block->clocks.records[record.number % SLOTS] = record;
    __atomic_store_n(&block->clocks.count, record.number + 1, __ATOMIC_RELEASE);
    block->words[WRITES_WORD]++;
    close(descriptor); /* and with it the lock */
    return true;
}
