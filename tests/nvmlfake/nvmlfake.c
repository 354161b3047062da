/* A stand-in for libnvidia-ml.so.1, so that unmodified pynvml can be exercised without a driver.
 *
 * Two A100s. State lives in the file named by NVMLFAKE_STATE (zero-filled when new), which other
 * processes and tests can map too, or in this process alone. NVMLFAKE_FAULTS makes calls fail:
 * "nvmlDeviceGetName:1:15,nvmlInitWithFlags:*:9" returns 15 for GPU 1 and 9 without a GPU.
 * For nvmlDeviceGetFieldValues a fault "field:0:3" fails the field, not the call.
 *
 * Behind the GPUs the file has a table of faults that count at once, in every process that runs;
 * nvml_faults.py writes it. Its code HANG is a call that never returns, as long as the entry is there.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define GPUS 2
#define HIGHEST 1410
#define LOWEST 210
#define STEP 15
#define FAULTS 16
#define ANY_GPU -1
#define HANG -1
#define CLOCKS ((HIGHEST - LOWEST) / STEP + 1)

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, INSUFFICIENT_SIZE = 7 };

struct gpu {
    uint32_t locked_mhz, writes, calls, mig;
    uint64_t energy_mj;
};
struct fault {
    char function[56]; /* empty: no fault */
    int32_t gpu, code;
};
struct state {
    struct gpu gpus[GPUS];
    struct fault faults[FAULTS];
};
struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    uint32_t type, result;
    union {
        double d;
        uint32_t ui;
        uint64_t ull;
    } value;
};
struct process {
    uint32_t pid;
    uint64_t memory;
    uint32_t gpu_instance, compute_instance;
};
struct temperature {
    uint32_t version, sensor;
    int32_t degrees;
};

static struct state private_state;
static struct state *state = &private_state;
static int references;

static int started_with(const char *function, int gpu) {
    const char *at = getenv("NVMLFAKE_FAULTS");
    size_t length = strlen(function);
    while (at && *at) {
        const char *rest = at + length + 1;
        if (!strncmp(at, function, length) && at[length] == ':' &&
            (*rest == '*' || *rest == '0' + gpu))
            return atoi(rest + 2);
        at = strchr(at, ',');
        if (at)
            at++;
    }
    return SUCCESS;
}

static int set_fault(const char *function, int gpu) {
    for (int i = 0; i < FAULTS; i++) {
        const volatile struct fault *set = &state->faults[i];
        if ((set->gpu == gpu || set->gpu == ANY_GPU) &&
            !strncmp((const char *)set->function, function, sizeof set->function))
            return set->code;
    }
    return SUCCESS;
}

static int fault(const char *function, int gpu) {
    const struct timespec pause = {0, 5000000};
    int code = set_fault(function, gpu);
    while (code == HANG) {
        nanosleep(&pause, NULL);
        code = set_fault(function, gpu);
    }
    return code != SUCCESS ? code : started_with(function, gpu);
}

static int index_of(void *handle) { return (int)((struct gpu *)handle - state->gpus); }

static int enter(const char *function, void *handle) {
    int index = index_of(handle);
    if (!references)
        return UNINITIALIZED;
    if (index < 0 || index >= GPUS)
        return INVALID;
    state->gpus[index].calls++;
    return fault(function, index);
}

#define ENTER(handle)                        \
    int code_ = enter(__func__, handle);     \
    struct gpu *gpu = handle;                \
    (void)gpu;                               \
    if (code_ != SUCCESS)                    \
    return code_

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("NVMLFAKE_STATE");
    int code = fault(__func__, 0);
    (void)flags;
    if (code != SUCCESS)
        return code;
    if (path && state == &private_state) {
        int descriptor = open(path, O_RDWR | O_CREAT, 0600);
        if (descriptor < 0 || ftruncate(descriptor, sizeof *state))
            return 999;
        state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        close(descriptor);
    }
    references++;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!references)
        return UNINITIALIZED;
    references--;
    return fault(__func__, 0);
}

const char *nvmlErrorString(int code) { return code == 999 ? "Unknown Error" : "a fake error"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = GPUS;
    return references ? fault(__func__, 0) : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if (!references)
        return UNINITIALIZED;
    if (index >= GPUS)
        return INVALID;
    *handle = &state->gpus[index];
    return fault(__func__, (int)index);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    ENTER(handle);
    snprintf(uuid, length, "GPU-fa4e0000-0000-0000-0000-%012d", index_of(handle));
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    ENTER(handle);
    snprintf(name, length, "NVIDIA A100-SXM4-80GB");
    return SUCCESS;
}

int nvmlDeviceGetSupportedMemoryClocks(void *handle, unsigned *count, unsigned *clocks) {
    static const unsigned known[] = {810, 1593};
    ENTER(handle);
    if (*count < 2) {
        *count = 2;
        return INSUFFICIENT_SIZE;
    }
    memcpy(clocks, known, sizeof known);
    return SUCCESS;
}

int nvmlDeviceGetSupportedGraphicsClocks(void *handle, unsigned memory, unsigned *count,
                                         unsigned *clocks) {
    unsigned n = memory == 1593 ? CLOCKS : 1; /* a low memory clock allows one graphics clock */
    ENTER(handle);
    if (*count < n) {
        *count = n;
        return INSUFFICIENT_SIZE;
    }
    for (unsigned i = 0; i < n; i++) /* descending, as the driver gives them */
        clocks[i] = HIGHEST - i * STEP;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *energy) {
    ENTER(handle);
    *energy = gpu->energy_mj += 1500;
    return SUCCESS;
}

int nvmlDeviceGetFieldValues(void *handle, int count, struct field *fields) {
    ENTER(handle);
    for (int i = 0; i < count; i++) {
        fields[i].type = 1; /* unsigned int */
        fields[i].result = fields[i].id == 186 ? (uint32_t)fault("field", index_of(handle)) : 3;
        fields[i].value.ui = 250500;
    }
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *power) {
    ENTER(handle);
    *power = 240250;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(void *handle, unsigned kind, unsigned *clock) {
    ENTER(handle);
    if (kind != 1) /* SM */
        return INVALID;
    *clock = gpu->locked_mhz ? gpu->locked_mhz : HIGHEST;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *handle, unsigned long long *reasons) {
    ENTER(handle);
    *reasons = 0x4 | 0x20;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
    ENTER(handle);
    *reasons = 0x8;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(void *handle, struct temperature *temperature) {
    ENTER(handle);
    if (temperature->version != (sizeof *temperature | 1u << 24))
        return 25;
    temperature->degrees = 61;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *degrees) {
    ENTER(handle);
    (void)sensor;
    *degrees = 60;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    ENTER(handle);
    *current = *pending = gpu->mig;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count,
                                            struct process *processes) {
    ENTER(handle);
    if (*count < 2) {
        *count = 2;
        return INSUFFICIENT_SIZE;
    }
    *count = 2;
    processes[0] = (struct process){4242, 1u << 30, ~0u, ~0u};
    processes[1] = (struct process){4343, ~0ull, ~0u, ~0u};
    return SUCCESS;
}

int nvmlDeviceSetGpuLockedClocks(void *handle, unsigned lowest, unsigned highest) {
    struct timespec latency = {0, 5000000};
    ENTER(handle);
    if (lowest != highest)
        return INVALID;
    nanosleep(&latency, NULL);
    gpu->locked_mhz = highest;
    gpu->writes++;
    return SUCCESS;
}

int nvmlDeviceResetGpuLockedClocks(void *handle) {
    ENTER(handle);
    gpu->locked_mhz = 0;
    gpu->writes++;
    return SUCCESS;
}
