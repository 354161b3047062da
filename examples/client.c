/* Training in C that perseusd hears of: a pipeline whose stages are processes, on the CPU.
 *
 *   cc -std=c11 -Wall -Wextra -Werror -O2 examples/client.c -lzmq -o client
 *   perseusd run --simulate 2 --runtime-dir DIR &
 *   export PERSEUS_RUNTIME_DIR=DIR PERSEUS_JOB=c PERSEUS_STAGES=2
 *   PERSEUS_STAGE=0 PERSEUS_RANK=0 PERSEUS_GPUS=0 ./client 100 &
 *   PERSEUS_STAGE=1 PERSEUS_RANK=1 PERSEUS_GPUS=1 ./client 100
 *
 * Without these variables it is one stage. The client itself is in perseus.h; what a stage computes
 * is real work of the CPU, and what it waits for stays outside of what it reports. */
#define _POSIX_C_SOURCE 200809L /* perseus.h asks for it */
#include "perseus.h"

enum { MICROBATCHES = 4, ROUNDS = 400000 };
typedef struct { void *before, *after; } Links; /* to the stages beside this one; NULL: none */

static long number_of(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? strtol(text, NULL, 10) : otherwise;
}

static const char *text_of(const char *name, const char *otherwise) {
  const char *text = getenv(name);
  return text && *text ? text : otherwise;
}

static void *link_to(void *context, const char *job, long stage, bool binds) {
  const int patience_ms = 20000;
  char address[TEXT + 64];
  void *link = zmq_socket(context, ZMQ_PAIR);
  snprintf(address, sizeof address, "ipc://@perseus-example-%.64s-%ld", job, stage);
  const int options[] = {ZMQ_RCVTIMEO, ZMQ_SNDTIMEO, ZMQ_LINGER};
  for (int i = 0; i < 3; i++) zmq_setsockopt(link, options[i], &patience_ms, sizeof patience_ms);
  if ((binds ? zmq_bind : zmq_connect)(link, address) == 0) return link;
  perror(address);
  exit(1);
}

static double receive(void *from) {
  double value = 1.0;
  if (!from || zmq_recv(from, &value, sizeof value, 0) == sizeof value) return value;
  fprintf(stderr, "a stage beside this one is gone\n");
  exit(1);
}

static void pass_on(void *to, double value) {
  if (!to || zmq_send(to, &value, sizeof value, 0) == sizeof value) return;
  fprintf(stderr, "a stage beside this one is gone\n");
  exit(1);
}

static double compute(double value, int times) { /* what a real stage does on its GPU */
  for (int i = 0; i < times * ROUNDS; i++) value = value * 0.999999 + 1.0 / (value + 1.5);
  return value;
}

static double train(Client *c, const Links *links, int iteration) {
  double kept[MICROBATCHES], gradient = 0;
  for (int m = 0; m < MICROBATCHES; m++) {
    double input = receive(links->before); /* waiting for others stays outside */
    int64_t token = perseus_start(c, "forward", m, iteration);
    kept[m] = compute(input, 1);
    perseus_end(c, token);
    pass_on(links->after, kept[m]);
  }
  for (int m = 0; m < MICROBATCHES; m++) {
    double above = receive(links->after);
    int64_t token = perseus_start(c, "backward", m, iteration);
    gradient += compute(above + kept[m], 2);
    perseus_end(c, token);
    pass_on(links->before, gradient);
  }
  return gradient;
}

int main(int argc, char **argv) {
  static Client client;
  char own[32];
  snprintf(own, sizeof own, "pid-%ld", (long)getpid());
  const Place place = {
      .job = text_of("PERSEUS_JOB", own), .schedule = text_of("PERSEUS_SCHEDULE", NULL),
      .gpus = getenv("PERSEUS_GPUS"), .rank = number_of("PERSEUS_RANK", 0),
      .world_size = -1, .local_rank = -1,
      .stage = number_of("PERSEUS_STAGE", 0), .stages = number_of("PERSEUS_STAGES", 1),
      .replica = number_of("PERSEUS_REPLICA", -1), .replicas = number_of("PERSEUS_REPLICAS", -1)};
  const int iterations = argc > 1 ? atoi(argv[1]) : 20;
  void *context = zmq_ctx_new();
  Links links = {NULL, NULL};
  double result = 0;
  const long stage = place.stage;
  if (stage > 0) links.before = link_to(context, place.job, stage, false);
  if (stage + 1 < place.stages) links.after = link_to(context, place.job, stage + 1, true);
  perseus_open(&client, &place, text_of("PERSEUS_RUNTIME_DIR", "/run/perseusd"));
  for (int iteration = 0; iteration < iterations; iteration++)
    result = train(&client, &links, iteration);
  perseus_close(&client);
  printf("%d iterations, %g\n", iterations, result);
  if (links.before) zmq_close(links.before);
  if (links.after) zmq_close(links.after);
  zmq_ctx_term(context);
  return 0;
}
