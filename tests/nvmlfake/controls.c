#define _GNU_SOURCE
#include "controls.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "node.h"

#define FAULTS 32
#define ANY_GPU NO_GPU /* so a call about no GPU has the faults of any, and not those of one */
#define HANG -1
#define POLL_NS 5000000

struct fault {
    char function[48]; /* empty: no fault; "*": every function */
    int32_t gpu, code, pid;
    uint32_t delay_us;
};
struct controls {
    uint32_t bank, needs_admin;
    struct fault faults[2][FAULTS];
    struct gpu_controls gpus[];
};

static struct controls *controls;
static char path[4096];
static bool writable;
static int in_use = -1;

bool controls_open(const char *node, int count) {
    struct stat status;
    size_t size = sizeof *controls + (size_t)count * sizeof(struct gpu_controls);
    if (controls)
        return true;
    snprintf(path, sizeof path, "%s.nvml", node);
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    writable = descriptor >= 0;
    if (!writable) /* as for one who may read only: its calls are not counted */
        descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &status))
        return false;
    bool whole = (size_t)status.st_size >= size || !posix_fallocate(descriptor, 0, (off_t)size);
    int may = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *mapped = whole ? mmap(NULL, size, may, MAP_SHARED, descriptor, 0) : MAP_FAILED;
    close(descriptor);
    controls = mapped == MAP_FAILED ? NULL : mapped;
    return controls != NULL;
}

const struct gpu_controls *controls_of(int gpu) { return &controls->gpus[gpu]; }

void count_call(int gpu, bool set) {
    if (!writable)
        return;
    __atomic_add_fetch(&controls->gpus[gpu].calls, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&controls->gpus[gpu].set_calls, set, __ATOMIC_RELAXED);
}

static const struct fault *find(const char *function, int gpu) {
    const struct fault *bank = controls->faults[__atomic_load_n(&controls->bank, __ATOMIC_ACQUIRE) % 2];
    for (int i = 0; i < FAULTS; i++) {
        const struct fault *set = &bank[i];
        bool any = !strcmp(set->function, "*");
        if ((any || !strncmp(set->function, function, sizeof set->function)) &&
            (set->gpu == gpu || set->gpu == ANY_GPU) && (!set->pid || set->pid == getpid()))
            return set;
    }
    return NULL;
}

int fault(const char *function, int gpu) {
    const struct fault *set = find(function, gpu);
    while (set && set->code == HANG) {
        sleep_ns(POLL_NS);
        set = find(function, gpu);
    }
    if (!set)
        return 0;
    int code = set->code;
    sleep_ns(set->delay_us * 1000LL);
    return code;
}

bool may_set(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (!controls->needs_admin)
        return true;
    return !syscall(SYS_capget, &header, data) && data[0].effective & 1u << CAP_SYS_ADMIN;
}

static bool hold(short kind, bool wait) {
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_len = 1};
    return !fcntl(in_use, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
}

void enter_driver(void (*alone)(void)) {
    in_use = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (in_use < 0)
        return;
    if (hold(F_WRLCK, false))
        alone();
    hold(F_RDLCK, true);
}

void leave_driver(void (*alone)(void)) {
    if (in_use < 0)
        return;
    if (hold(F_WRLCK, false))
        alone();
    close(in_use); /* and with it the lock */
    in_use = -1;
}
