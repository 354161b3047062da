/* A stand-in for libnvidia-ml.so.1, so that unmodified pynvml can be exercised without a driver.
 *
 * A thin face over the simulated GPUs of the file that NVMLFAKE_NODE names (node.c): emulated jobs
 * compute on them while perseusd reads and locks them through here. Faults, MIG, vGPU and the like are
 * set in a file beside it (controls.c). nvml_build.py builds it and says what a process needs.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls.h"
#include "node.h"
#include "nvml_types.h"

#define LOW_MEMORY_MHZ 810
#define HIGH_MEMORY_MHZ 1593
#define PER_PROCESS_BYTES (1ull << 30)
#define UNKNOWN_ID 0xffffffffu

struct nvmlDevice_st {
    char nothing;
};

static struct nvmlDevice_st devices[MAX_GPUS];
static int references;

static int index_of(nvmlDevice_t device) { return (int)(device - devices); }

static nvmlReturn_t enter(const char *function, nvmlDevice_t device, bool set) {
    if (!references)
        return NVML_ERROR_UNINITIALIZED;
    if (device < devices || device >= devices + gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    count_call(index_of(device), set);
    return (nvmlReturn_t)fault(function, index_of(device));
}

#define ENTER(device)                                    \
    nvmlReturn_t code_ = enter(__func__, device, false); \
    if (code_ != NVML_SUCCESS)                           \
    return code_

static nvmlReturn_t text(const char *what, char *into, unsigned length) {
    return snprintf(into, length, "%s", what) < (int)length ? NVML_SUCCESS
                                                            : NVML_ERROR_INSUFFICIENT_SIZE;
}

static struct moment moment_of(nvmlDevice_t device) { return node_at(index_of(device), now_ns()); }

/* Without persistence mode the driver forgets locks when nobody uses it any more. A user that was
 * killed is noticed by the next one only. */
static void forget_locks(void) {
    for (int gpu = 0; gpu < gpus; gpu++)
        if (controls_of(gpu)->persistence_off && node_locked(gpu))
            node_write(gpu, UNLOCKED);
}

nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    const char *node = getenv("NVMLFAKE_NODE");
    (void)flags;
    if (!node || !node_open(node) || !controls_open(node, gpus))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    nvmlReturn_t code = (nvmlReturn_t)fault(__func__, NO_GPU);
    if (code != NVML_SUCCESS)
        return code;
    if (!references++)
        enter_driver(forget_locks);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

nvmlReturn_t nvmlShutdown(void) {
    if (!references)
        return NVML_ERROR_UNINITIALIZED;
    if (!--references)
        leave_driver(forget_locks);
    return (nvmlReturn_t)fault(__func__, NO_GPU);
}

const char *nvmlErrorString(nvmlReturn_t code) {
    return code == NVML_ERROR_UNKNOWN ? "Unknown Error" : "a fake error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return references ? text("999.99.fake", version, length) : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)gpus;
    return references ? (nvmlReturn_t)fault(__func__, NO_GPU) : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    if (!references)
        return NVML_ERROR_UNINITIALIZED;
    if (index >= (unsigned)gpus)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = &devices[index];
    return (nvmlReturn_t)fault(__func__, (int)index);
}

static void uuid_of(int gpu, char uuid[64]) {
    snprintf(uuid, 64, "GPU-sim00000-0000-0000-0000-%012d", gpu);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    for (int gpu = 0; references && gpu < gpus; gpu++) {
        char known[64];
        uuid_of(gpu, known);
        if (!strcmp(known, uuid)) {
            *device = &devices[gpu];
            return (nvmlReturn_t)fault(__func__, gpu);
        }
    }
    return references ? NVML_ERROR_NOT_FOUND : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    ENTER(device);
    *index = (unsigned)index_of(device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned length) {
    char known[64];
    ENTER(device);
    uuid_of(index_of(device), known);
    return text(known, uuid, length);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned length) {
    ENTER(device);
    return text(spec.name, name, length);
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned *count,
                                                unsigned *clocks) {
    static const unsigned known[] = {HIGH_MEMORY_MHZ, LOW_MEMORY_MHZ};
    ENTER(device);
    if (controls_of(index_of(device))->vgpu)
        return NVML_ERROR_NOT_SUPPORTED;
    bool fits = *count >= 2;
    *count = 2;
    if (fits)
        memcpy(clocks, known, sizeof known);
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned memory,
                                                  unsigned *count, unsigned *clocks) {
    unsigned known = memory == HIGH_MEMORY_MHZ ? (unsigned)spec.clocks : 1;
    ENTER(device); /* a low memory clock allows one graphics clock */
    if (controls_of(index_of(device))->vgpu)
        return NVML_ERROR_NOT_SUPPORTED;
    bool fits = *count >= known;
    *count = known;
    for (unsigned i = 0; fits && i < known; i++) /* descending, as the driver gives them */
        clocks[i] = (unsigned)spec.mhz[spec.clocks - 1 - (int)i];
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy) {
    ENTER(device);
    *energy = (unsigned long long)(node_counter_j(index_of(device), now_ns()) * 1000);
    return NVML_SUCCESS;
}

/* A fault of "field" fails each field, not the call. */
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    ENTER(device);
    for (int i = 0; i < count; i++) {
        nvmlFieldValue_t *field = &fields[i];
        field->nvmlReturn = (nvmlReturn_t)fault("field", index_of(device));
        if (field->fieldId == NVML_FI_DEV_POWER_INSTANT) {
            field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
            field->value.uiVal = (unsigned)(moment_of(device).power_w * 1000);
        } else if (field->fieldId == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION) {
            field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            double energy_j = node_counter_j(index_of(device), now_ns());
            field->value.ullVal = (unsigned long long)(energy_j * 1000);
        } else
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    }
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *power) {
    ENTER(device);
    *power = (unsigned)(moment_of(device).power_w * 1000);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t kind, unsigned *clock) {
    ENTER(device);
    if (kind == NVML_CLOCK_MEM)
        *clock = HIGH_MEMORY_MHZ;
    else if (kind == NVML_CLOCK_SM || kind == NVML_CLOCK_GRAPHICS)
        *clock = (unsigned)moment_of(device).clock_mhz;
    else
        return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t kind, unsigned *clock) {
    ENTER(device);
    if (kind > NVML_CLOCK_MEM)
        return NVML_ERROR_INVALID_ARGUMENT;
    *clock = kind == NVML_CLOCK_MEM ? HIGH_MEMORY_MHZ : (unsigned)spec.mhz[spec.clocks - 1];
    return NVML_SUCCESS;
}

static unsigned long long reasons_of(int gpu) {
    struct moment moment = node_at(gpu, now_ns());
    unsigned long long reasons = (unsigned long long)moment.reasons;
    if (moment.working)
        return moment.capped ? reasons | nvmlClocksEventReasonSwPowerCap : reasons;
    return node_pid(gpu) ? reasons : reasons | nvmlClocksEventReasonGpuIdle;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *reasons) {
    ENTER(device);
    *reasons = reasons_of(index_of(device));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *reasons) {
    ENTER(device);
    *reasons = reasons_of(index_of(device));
    return NVML_SUCCESS;
}

/* As in simulated.py: a number to show, not a thermal model. */
static int degrees_of(nvmlDevice_t device) { return (int)(30 + 0.1 * moment_of(device).power_w); }

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature) {
    ENTER(device);
    if (temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    temperature->temperature = degrees_of(device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor,
                                      unsigned *degrees) {
    ENTER(device);
    if (sensor != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    *degrees = (unsigned)degrees_of(device);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *current, unsigned *pending) {
    ENTER(device);
    *current = *pending = controls_of(index_of(device))->mig ? NVML_DEVICE_MIG_ENABLE : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device,
                                             nvmlGpuVirtualizationMode_t *mode) {
    ENTER(device);
    *mode = controls_of(index_of(device))->vgpu ? NVML_GPU_VIRTUALIZATION_MODE_VGPU
                                                : NVML_GPU_VIRTUALIZATION_MODE_NONE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode) {
    ENTER(device);
    *mode = controls_of(index_of(device))->persistence_off ? NVML_FEATURE_DISABLED
                                                           : NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *count,
                                                     nvmlProcessInfo_t *processes) {
    ENTER(device);
    const struct gpu_controls *set = controls_of(index_of(device));
    unsigned pid = (unsigned)node_pid(index_of(device));
    const unsigned *pids = set->processes_set ? set->pids : &pid;
    unsigned found = set->processes_set ? set->pid_count : pid != 0;
    bool fits = *count >= found;
    *count = found;
    for (unsigned i = 0; fits && i < found; i++)
        processes[i] = (nvmlProcessInfo_t){pids[i], PER_PROCESS_BYTES, UNKNOWN_ID, UNKNOWN_ID};
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

static nvmlReturn_t write_clock(const char *function, nvmlDevice_t device, int mhz) {
    nvmlReturn_t code = enter(function, device, true);
    if (code != NVML_SUCCESS)
        return code;
    if (controls_of(index_of(device))->vgpu)
        return NVML_ERROR_NOT_SUPPORTED;
    if (mhz != UNLOCKED && !node_supports(mhz))
        return NVML_ERROR_INVALID_ARGUMENT;
    return may_set() && node_write(index_of(device), mhz) ? NVML_SUCCESS : NVML_ERROR_NO_PERMISSION;
}

nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned lowest, unsigned highest) {
    /* a range is more than a simulated GPU can do */
    return write_clock(__func__, device, lowest == highest ? (int)lowest : -1);
}

nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    return write_clock(__func__, device, UNLOCKED);
}

/* No NVML function: the exact energy at a moment, for the test that compares us with Python. */
double nvmlfake_energy_j(unsigned gpu, long long at_ns) { return node_at((int)gpu, at_ns).energy_j; }
