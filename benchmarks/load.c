/* Asks a socketmap over a unix socket, each connection in lock-step as MTAs do: one question, its reply, the next.

     load SOCKET CONNECTIONS REPLY < KEYS

   Each line of the standard input is a key; an empty line ends them. Once every connection has had one reply it
   says `ready`, and begins at the next line of input. Every reply must begin with REPLY. At the end it writes a line
   of JSON and keeps the connections until its input ends, so that the server's processes can be looked at. It waits
   30 s at most for one reply, and ends after 120 s in any case. */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, OCTETS = 1024, SECONDS = 30, LIMIT = 120 };

struct connection {
    int socket, length;
    double asked;
    char reply[OCTETS];
};

static char **keys;
static double *waited;
static size_t count, next, answered;
static const char *wanted;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static double used(void) {
    struct rusage of;
    getrusage(RUSAGE_SELF, &of);
    return of.ru_utime.tv_sec + of.ru_stime.tv_sec + (of.ru_utime.tv_usec + of.ru_stime.tv_usec) / 1e6;
}

static void ask(struct connection *one, const char *key) {
    char request[OCTETS];
    int length = snprintf(request, sizeof request, "%zu:cyrus %s,", strlen(key) + 6, key);
    one->length = 0;
    one->asked = now();
    if (length >= (int)sizeof request || write(one->socket, request, length) != length) die("write");
}

/* Read what is there; 1 when the reply is complete and as wanted. */
static int hear(struct connection *one) {
    ssize_t got = read(one->socket, one->reply + one->length, OCTETS - 1 - one->length);
    if (got <= 0) die("read");
    one->reply[one->length += got] = 0;
    char *text;
    long octets = strtol(one->reply, &text, 10);
    if (*text != ':' || one->length < text + 1 - one->reply + octets + 1) {
        if (one->length == OCTETS - 1) die("a reply too long");
        return 0;
    }
    if (strncmp(text + 1, wanted, strlen(wanted))) {
        fprintf(stderr, "load: got %s\n", one->reply);
        exit(1);
    }
    return 1;
}

static void read_keys(void) {
    size_t room = 0;
    char line[OCTETS];
    while (fgets(line, sizeof line, stdin) && *line != '\n') {
        line[strcspn(line, "\n")] = 0;
        if (count == room && !(keys = realloc(keys, (room = room * 2 + 1024) * sizeof *keys))) die("memory");
        if (!(keys[count++] = strdup(line))) die("memory");
    }
    if (!(waited = calloc(count + 1, sizeof *waited))) die("memory");
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

int main(int words, char **word) {
    static struct connection all[MOST];
    static struct pollfd polled[MOST];
    int connections = words == 4 ? atoi(word[2]) : 0;
    if (connections < 1 || connections > MOST) return 64;
    wanted = word[3];
    alarm(LIMIT);
    read_keys();
    if (count < 2 * (size_t)connections) return 64;
    for (int i = 0; i < connections; i++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        strncpy(at.sun_path, word[1], sizeof at.sun_path - 1);
        all[i].socket = socket(AF_UNIX, SOCK_STREAM, 0);
        struct timeval limit = {.tv_sec = SECONDS};
        setsockopt(all[i].socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (connect(all[i].socket, (struct sockaddr *)&at, sizeof at)) die(word[1]);
        polled[i] = (struct pollfd){.fd = all[i].socket, .events = POLLIN};
        ask(&all[i], keys[next++]);
        while (!hear(&all[i])) {}
    }
    char line[8];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 1;

    size_t total = count - next;
    double begin = now(), cpu = used();
    for (int i = 0; i < connections; i++) ask(&all[i], keys[next++]);
    while (answered < total) {
        /* One connection waits in read itself. */
        int ready = connections == 1 ? 1 : poll(polled, connections, SECONDS * 1000);
        if (ready <= 0) die("poll");
        for (int i = 0; i < connections; i++) {
            if (connections > 1 && !polled[i].revents) continue;
            if (!hear(&all[i])) continue;
            waited[answered++] = now() - all[i].asked;
            if (next < count) ask(&all[i], keys[next++]);
        }
    }
    double seconds = now() - begin;
    cpu = used() - cpu;
    qsort(waited, total, sizeof *waited, ascending);
    printf("{\"answers\": %zu, \"seconds\": %.6f, \"generator\": %.6f, \"p50\": %.9f, \"p99\": %.9f}\n", total, seconds,
           cpu, waited[total / 2], waited[total * 99 / 100]);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
    return 0;
}
