/* What tests set while processes use the library: the file beside the node, NODE.nvml.
 *
 * nvml_faults.py writes it and says what each of its fields means. Faults stand in two banks, of
 * which one is in force, so that they change all at once.
 */
#ifndef CONTROLS_H
#define CONTROLS_H

#include <stdbool.h>
#include <stdint.h>

#define PIDS 16
#define NO_GPU -1 /* of a call that is about the driver as a whole */

struct gpu_controls {
    uint32_t mig, vgpu, persistence_off, processes_set, pid_count, pids[PIDS], padding;
    uint64_t calls, set_calls;
};

/* Beside that node, for so many GPUs; made if it is not there. False where that fails. */
bool controls_open(const char *node, int gpus);
const struct gpu_controls *controls_of(int gpu);
/* A call on that GPU, which was to write its clock or not. */
void count_call(int gpu, bool set);
/* The code that this call is to return, after having taken as long as it is to take; or 0. */
int fault(const char *function, int gpu);
/* False where clock writes need CAP_SYS_ADMIN and this thread has not got it. */
bool may_set(void);
/* This process uses the driver from now on; not any more. `alone` is called where no other one does,
 * before another one can begin. */
void enter_driver(void (*alone)(void));
void leave_driver(void (*alone)(void));

#endif
