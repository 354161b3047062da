/* What the stand-in needs of nvml.h, under its names, for machines that have no nvml.h.
 *
 * With -DNVML_HEADER the real header takes this one's place: then the compiler checks every
 * function's type against it, and the assertions at the end hold for it as for us.
 */
#ifndef NVML_TYPES_H
#define NVML_TYPES_H

#include <stddef.h>

#ifdef NVML_HEADER
#include NVML_HEADER
#else

typedef struct nvmlDevice_st *nvmlDevice_t;

typedef enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_RESET_REQUIRED = 16,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999
} nvmlReturn_t;

typedef enum { NVML_CLOCK_GRAPHICS = 0, NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 } nvmlClockType_t;
typedef enum { NVML_TEMPERATURE_GPU = 0 } nvmlTemperatureSensors_t;
typedef enum { NVML_FEATURE_DISABLED = 0, NVML_FEATURE_ENABLED = 1 } nvmlEnableState_t;
typedef enum {
    NVML_GPU_VIRTUALIZATION_MODE_NONE = 0,
    NVML_GPU_VIRTUALIZATION_MODE_VGPU = 2
} nvmlGpuVirtualizationMode_t;
typedef enum {
    NVML_VALUE_TYPE_UNSIGNED_INT = 1,
    NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = 3
} nvmlValueType_t;

typedef union {
    double dVal;
    unsigned int uiVal;
    unsigned long ulVal;
    unsigned long long ullVal;
} nvmlValue_t;

typedef struct {
    unsigned int fieldId, scopeId;
    long long timestamp, latencyUsec;
    nvmlValueType_t valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct {
    unsigned int version;
    nvmlTemperatureSensors_t sensorType;
    int temperature;
} nvmlTemperature_v1_t;
typedef nvmlTemperature_v1_t nvmlTemperature_t;

#define NVML_STRUCT_VERSION(data, ver) (unsigned int)(sizeof(nvml##data##_v##ver##_t) | (ver << 24U))
#define nvmlTemperature_v1 NVML_STRUCT_VERSION(Temperature, 1)
#define NVML_DEVICE_MIG_ENABLE 0x1
#define NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION 83
#define NVML_FI_DEV_POWER_INSTANT 186
#define nvmlClocksEventReasonGpuIdle 0x0000000000000001LL
#define nvmlClocksEventReasonSwPowerCap 0x0000000000000004LL

#endif

#define SAME(what, value) _Static_assert((what) == (value), #what " is not " #value)

SAME(NVML_SUCCESS, 0);
SAME(NVML_ERROR_UNINITIALIZED, 1);
SAME(NVML_ERROR_INVALID_ARGUMENT, 2);
SAME(NVML_ERROR_NOT_SUPPORTED, 3);
SAME(NVML_ERROR_NO_PERMISSION, 4);
SAME(NVML_ERROR_NOT_FOUND, 6);
SAME(NVML_ERROR_INSUFFICIENT_SIZE, 7);
SAME(NVML_ERROR_DRIVER_NOT_LOADED, 9);
SAME(NVML_ERROR_TIMEOUT, 10);
SAME(NVML_ERROR_GPU_IS_LOST, 15);
SAME(NVML_ERROR_RESET_REQUIRED, 16);
SAME(NVML_ERROR_LIB_RM_VERSION_MISMATCH, 18);
SAME(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, 25);
SAME(NVML_ERROR_UNKNOWN, 999);
SAME(NVML_CLOCK_GRAPHICS, 0);
SAME(NVML_CLOCK_SM, 1);
SAME(NVML_CLOCK_MEM, 2);
SAME(NVML_TEMPERATURE_GPU, 0);
SAME(NVML_FEATURE_ENABLED, 1);
SAME(NVML_GPU_VIRTUALIZATION_MODE_VGPU, 2);
SAME(NVML_VALUE_TYPE_UNSIGNED_INT, 1);
SAME(NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, 3);
SAME(NVML_DEVICE_MIG_ENABLE, 1);
SAME(NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 83);
SAME(NVML_FI_DEV_POWER_INSTANT, 186);
SAME(nvmlClocksEventReasonGpuIdle, 1);
SAME(nvmlClocksEventReasonSwPowerCap, 4);
SAME(sizeof(nvmlReturn_t), 4);
SAME(sizeof(nvmlValue_t), 8);
SAME(sizeof(nvmlFieldValue_t), 40);
SAME(offsetof(nvmlFieldValue_t, timestamp), 8);
SAME(offsetof(nvmlFieldValue_t, latencyUsec), 16);
SAME(offsetof(nvmlFieldValue_t, valueType), 24);
SAME(offsetof(nvmlFieldValue_t, nvmlReturn), 28);
SAME(offsetof(nvmlFieldValue_t, value), 32);
SAME(sizeof(nvmlProcessInfo_t), 24);
SAME(offsetof(nvmlProcessInfo_t, usedGpuMemory), 8);
SAME(offsetof(nvmlProcessInfo_t, gpuInstanceId), 16);
SAME(offsetof(nvmlProcessInfo_t, computeInstanceId), 20);
SAME(sizeof(nvmlTemperature_v1_t), 12);
SAME(offsetof(nvmlTemperature_v1_t, temperature), 8);
SAME(nvmlTemperature_v1, 12 | 1 << 24);

#endif
