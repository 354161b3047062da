/* A client of perseusd in C, to be taken over: written from docs/protocol.md alone; needs libzmq.
 *
 * Its calls never wait for the daemon, and do nothing where there is none. One thread only: with
 * several, guard each call by a lock that is tried and not waited for. Names longer than TEXT bytes
 * are cut. perseus_open comes first, perseus_close last; examples/client.c shows them at work.
 * Define _POSIX_C_SOURCE as 200809L before the first #include: clock_gettime, gethostname. */
#ifndef PERSEUS_H
#define PERSEUS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum { MESSAGE = 4096, TEXT = 256, REFUSALS = 8 };
static const int64_t RETRY_NS = 10000000, LOOK_NS = 100000000; /* after a drop; between looks */

/* ---- msgpack: the few forms that the wire has ---- */

typedef struct { unsigned char bytes[MESSAGE]; size_t size; } Message; /* a hello of ours fits */

static inline void put(Message *m, const void *bytes, size_t size) {
  if (size > MESSAGE - m->size) return;
  memcpy(m->bytes + m->size, bytes, size);
  m->size += size;
}

/* A tag and `size` bytes of a number behind it, big-endian. */
static inline void put_number(Message *m, int tag, uint64_t value, int size) {
  unsigned char form[9] = {(unsigned char)tag};
  for (int i = 0; i < size; i++) form[1 + i] = (unsigned char)(value >> 8 * (size - 1 - i));
  put(m, form, 1 + (size_t)size);
}

static inline void put_integer(Message *m, int64_t value) { /* the shortest form; negative: nil */
  uint64_t n = (uint64_t)value;
  if (value < 0) put_number(m, 0xc0, 0, 0);
  else if (n < 0x80) put_number(m, (int)n, 0, 0);
  else if (n <= UINT8_MAX) put_number(m, 0xcc, n, 1);
  else if (n <= UINT16_MAX) put_number(m, 0xcd, n, 2);
  else if (n <= UINT32_MAX) put_number(m, 0xce, n, 4);
  else put_number(m, 0xcf, n, 8);
}

static inline void put_text(Message *m, const char *text) { /* NULL or empty: nil */
  size_t size = text ? strnlen(text, TEXT) : 0;
  if (size == 0) put_number(m, 0xc0, 0, 0);
  else if (size < 32) put_number(m, 0xa0 | (int)size, 0, 0);
  else if (size < 256) put_number(m, 0xd9, size, 1);
  else put_number(m, 0xda, size, 2);
  put(m, text ? text : "", size);
}

static inline void put_array(Message *m, int count, const char *tag) { /* tag: its first element */
  if (count < 16) put_number(m, 0x90 | count, 0, 0);
  else put_number(m, 0xdc, (uint64_t)count, 2);
  if (tag) put_text(m, tag);
}

/* The text at *at, and *at behind it; false where there is none that ends before `end`. */
static inline bool take_text(const unsigned char **at, const unsigned char *end,
                             char text[TEXT + 1]) {
  const unsigned char *p = *at;
  size_t size;
  if (end - p >= 1 && (p[0] & 0xe0) == 0xa0) size = p[0] & 0x1f, p += 1;
  else if (end - p >= 2 && p[0] == 0xd9) size = p[1], p += 2;
  else if (end - p >= 3 && p[0] == 0xda) size = (size_t)(p[1] << 8 | p[2]), p += 3;
  else return false;
  if (size > TEXT || size > (size_t)(end - p)) return false;
  memcpy(text, p, size);
  text[size] = 0;
  *at = p + size;
  return true;
}

/* ---- the client ---- */

typedef struct { /* what is negative or NULL is not known */
  const char *job, *schedule, *gpus; /* gpus: as PERSEUS_GPUS, comma-separated */
  long rank, world_size, local_rank, stage, stages, replica, replicas;
} Place;

typedef struct {
  void *context, *socket;
  pid_t process; /* a forked child is silent: it must not speak as this rank */
  Message hello;
  bool introduced;
  int64_t sequence, token, retry_ns, look_ns;
  int refusals;
  char refused[REFUSALS][2 * TEXT + 3];
} Client;

static inline int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* list: as PERSEUS_GPUS, "0,GPU-…"; a bare number counts in PCI bus order. */
static inline void put_gpus(Message *m, const char *list) {
  char names[64][TEXT + 1];
  int count = 0;
  for (const char *p = list; p && *p && count < 64; p += strcspn(p, ","), p += *p == ',') {
    int size = (int)strcspn(p, ",");
    bool number = size > 0 && (int)strspn(p, "0123456789") == size;
    if (size > 0) snprintf(names[count++], TEXT + 1, "%s%.*s", number ? "index:" : "", size, p);
  }
  put_array(m, count, NULL);
  for (int i = 0; i < count; i++) put_text(m, names[i]);
}

static inline void make_hello(Message *m, const Place *place) {
  char host[TEXT + 1] = "";
  gethostname(host, TEXT);
  const long numbers[] = {place->rank,   place->world_size, place->local_rank, place->stage,
                          place->stages, place->replica,    place->replicas};
  m->size = 0;
  put_array(m, 17, "h");
  put_integer(m, 1), put_integer(m, 0); /* the wire's version */
  put_text(m, place->job);
  for (int i = 0; i < 7; i++) put_integer(m, numbers[i]);
  put_text(m, place->schedule);
  put_gpus(m, place->gpus);
  put_text(m, "host");         /* time_source: stamps of the calling thread */
  put_number(m, 0xc2, 0, 0);   /* uses_cuda: false; 0xc3 where CUDA computes */
  put_number(m, 0xc0, 0, 0);   /* slowdown_budget: the daemon's */
  put_text(m, *host ? host : "unknown");
}

static inline bool perseus_enabled(void) {
  const char *said = getenv("PERSEUS_ENABLED"), *off[] = {"0", "false", "no", "off"};
  for (int i = 0; said && i < 4; i++)
    if (strcasecmp(said, off[i]) == 0) return false;
  return true;
}

/* False where there is to be no client, or none can be made; every call then does nothing. */
static inline bool perseus_open(Client *c, const Place *place, const char *runtime_dir) {
  const int none = 0, yes = 1, queue = 256, first_ms = 10, longest_ms = 1000;
  char path[TEXT];
  memset(c, 0, sizeof *c);
  c->process = getpid();
  make_hello(&c->hello, place);
  if (!perseus_enabled()) return false;
  if (snprintf(path, sizeof path, "ipc://%s/hooks.sock", runtime_dir) > 6 + 107) return false;
  c->context = zmq_ctx_new();
  c->socket = c->context ? zmq_socket(c->context, ZMQ_DEALER) : NULL;
  if (!c->socket) return false;
  zmq_setsockopt(c->socket, ZMQ_LINGER, &none, sizeof none);
  zmq_setsockopt(c->socket, ZMQ_IMMEDIATE, &yes, sizeof yes); /* no queue without a daemon */
  zmq_setsockopt(c->socket, ZMQ_SNDHWM, &queue, sizeof queue);
  zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &first_ms, sizeof first_ms);
  zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL_MAX, &longest_ms, sizeof longest_ms);
  return zmq_connect(c->socket, path) == 0;
}

static inline bool send_now(Client *c, const Message *m, int64_t time_ns) { /* or never */
  if (zmq_send(c->socket, m->bytes, m->size, ZMQ_DONTWAIT) >= 0) return true;
  c->introduced = false; /* who comes after it does not know us */
  c->retry_ns = time_ns + RETRY_NS;
  return false;
}

static inline void say_once(Client *c, const char *code, const char *reason) {
  char text[sizeof c->refused[0]];
  snprintf(text, sizeof text, "%s: %s", code, reason);
  for (int i = 0; i < c->refusals; i++)
    if (strcmp(c->refused[i], text) == 0) return;
  if (c->refusals == REFUSALS) return;
  strcpy(c->refused[c->refusals++], text);
  fprintf(stderr, "perseusd does not accept this process: %s\n", text);
}

static inline void hear(Client *c, const unsigned char *at, const unsigned char *end) {
  char tag[TEXT + 1], code[TEXT + 1], reason[TEXT + 1];
  if (at < end && (*at & 0xf0) == 0x90) at += 1;   /* an array of up to 15 … */
  else if (end - at >= 3 && *at == 0xdc) at += 3;  /* … or of more, from a later minor version */
  else return;
  if (!take_text(&at, end, tag)) return;
  if (strcmp(tag, "i") == 0) c->introduced = false;
  if (strcmp(tag, "r") == 0 && take_text(&at, end, code) && take_text(&at, end, reason))
    say_once(c, code, reason);
}

static inline bool introduce(Client *c, int64_t time_ns) {
  return c->introduced || (c->introduced = send_now(c, &c->hello, time_ns));
}

static inline void emit(Client *c, const Message *m, int64_t time_ns) {
  unsigned char answer[MESSAGE];
  if (!c->socket || getpid() != c->process || time_ns < c->retry_ns) return;
  if (!introduce(c, time_ns) || !send_now(c, m, time_ns) || time_ns < c->look_ns) return;
  c->look_ns = time_ns + LOOK_NS;
  for (int i = 0, n; i < 16; i++) {
    if ((n = zmq_recv(c->socket, answer, sizeof answer, ZMQ_DONTWAIT)) < 0) break;
    if (n <= MESSAGE) hear(c, answer, answer + n); /* zmq_recv cuts what is longer, and says so */
  }
  introduce(c, time_ns);
}

/* A computation starts; its token is for perseus_end. iteration: counts by one; -1: not said. */
static inline int64_t perseus_start(Client *c, const char *instruction, int microbatch,
                                    int iteration) {
  Message m = {.size = 0};
  int64_t time_ns = now_ns();
  put_array(&m, 9, "s");
  put_integer(&m, ++c->sequence); /* counts what is dropped, too */
  put_integer(&m, time_ns);
  put_integer(&m, ++c->token);
  put_text(&m, instruction);
  put_integer(&m, microbatch);
  put_integer(&m, 0);  /* chunk */
  put_integer(&m, -1); /* stage: the hello's */
  put_integer(&m, iteration);
  emit(c, &m, time_ns);
  return c->token;
}

static inline void perseus_end(Client *c, int64_t token) {
  Message m = {.size = 0};
  int64_t time_ns = now_ns();
  put_array(&m, 4, "e");
  put_integer(&m, ++c->sequence);
  put_integer(&m, time_ns);
  put_integer(&m, token);
  emit(c, &m, time_ns);
}

static inline void perseus_close(Client *c) { /* waits for its goodbye to leave, 100 ms at most */
  const int goodbye_ms = 100;
  Message m = {.size = 0};
  if (getpid() != c->process) return;
  put_array(&m, 3, "g");
  put_integer(&m, ++c->sequence);
  put_integer(&m, now_ns());
  if (c->socket && c->introduced && zmq_send(c->socket, m.bytes, m.size, ZMQ_DONTWAIT) >= 0)
    zmq_setsockopt(c->socket, ZMQ_LINGER, &goodbye_ms, sizeof goodbye_ms);
  if (c->socket) zmq_close(c->socket);
  if (c->context) zmq_ctx_term(c->context);
  c->socket = c->context = NULL;
}

#endif
