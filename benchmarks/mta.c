/* Asks a milter as many MTAs at once: each session tells a recipient, waits for the reply, tells the next.

     mta SOCKET SESSIONS RECIPIENTS TRANSACTIONS REPLY < ADDRESSES

   Each line of the standard input is a recipient; an empty line ends them. A session is a connection that speaks
   version 6 as Postfix does: the negotiation, CONNECT, HELO, then transactions of MAIL and so many recipients, which
   end by ABORT. After so many transactions it says QUIT, and a new session takes its place. What the milter
   negotiated away is not told, what it does not reply to is not waited for, and of the macros only those go out that
   it asked for. Every reply to a recipient must begin with REPLY: `c`, or `y550`.

   Once each session has had one reply to a recipient it says `ready`, and goes on at the next line of input. At the
   end it writes a line of JSON. It waits 30 s at most for any reply, and ends after 120 s in any case.

   The wait for the first recipient of a transaction includes what was told before it and is not replied to. */

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 256, OCTETS = 4096, SECONDS = 30, LIMIT = 120 };
enum stage { OFFER, CONNECT, HELO, MAIL, RCPT }; /* from CONNECT on less one: SMFIM_*, the stages of macros */

static const struct { char letter; uint32_t no, no_reply; } commands[] = {
    {'O', 0, 0}, {'C', 0x1, 0x1000}, {'H', 0x2, 0x2000}, {'M', 0x4, 0x4000}, {'R', 0x8, 0x8000},
};
/* What Postfix sends where a milter names no macros. */
static const char *const defaults[] = {"", "j {daemon_name} v", "", "{mail_addr} {mail_host} {mail_mailer}",
                                       "i {rcpt_addr} {rcpt_host} {rcpt_mailer}"};

struct session {
    int socket, told, transactions, parked, heard;
    enum stage at;
    uint32_t steps;
    char macros[RCPT + 1][256];
    const char *recipient;
    double asked;
    size_t out, in;
    char sending[OCTETS], hearing[OCTETS];
};

static struct session all[MOST];
static char **addresses;
static double *waited;
static size_t count, next, answered;
static int warming = 1; /* until each session has had a reply */
static const char *path, *wanted;
static int recipients, transactions;

static void die(const char *what) {
    fprintf(stderr, "mta: %s: %s\n", what, strerror(errno));
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

/* Packets: begun with a letter, filled, and closed, which writes their length. */

static void add(struct session *one, const void *data, size_t octets) {
    if (one->out + octets > OCTETS) die("a packet too long");
    memcpy(one->sending + one->out, data, octets);
    one->out += octets;
}

static void add_string(struct session *one, const char *text) { add(one, text, strlen(text) + 1); }

static size_t begin(struct session *one, char letter) {
    add(one, "\0\0\0\0", 4);
    add(one, &letter, 1);
    return one->out - 5;
}

static void finish(struct session *one, size_t packet) {
    uint32_t length = htonl(one->out - packet - 4);
    memcpy(one->sending + packet, &length, 4);
}

static const char *value(const struct session *one, const char *name) {
    const char *at = one->recipient ? strchr(one->recipient, '@') : NULL;
    if (!strcmp(name, "j")) return "mx.example.org";
    if (!strcmp(name, "{daemon_name}")) return "smtpd";
    if (!strcmp(name, "v")) return "Postfix";
    if (!strcmp(name, "{client_addr}")) return "192.0.2.7";
    if (!strcmp(name, "{mail_addr}")) return "sender@client.example";
    if (!strcmp(name, "{mail_host}")) return "client.example";
    if (!strcmp(name, "{mail_mailer}")) return "smtp";
    if (!at) return NULL;
    if (!strcmp(name, "i")) return one->told ? "4XyZ1a2b3cz9d" : NULL; /* Postfix: after the first recipient */
    if (!strcmp(name, "{rcpt_addr}")) return one->recipient;
    if (!strcmp(name, "{rcpt_host}")) return at + 1;
    if (!strcmp(name, "{rcpt_mailer}")) return "relay";
    return NULL;
}

static void add_macros(struct session *one, enum stage stage) {
    char names[256], *rest = names, *name;
    strcpy(names, one->macros[stage]);
    size_t packet = begin(one, 'D'), empty;
    add(one, &commands[stage].letter, 1);
    empty = one->out;
    while ((name = strtok_r(rest, " ", &rest))) {
        const char *known = value(one, name);
        if (!known) continue;
        add_string(one, name);
        add_string(one, known);
    }
    if (one->out == empty) one->out = packet;
    else finish(one, packet);
}

static void add_command(struct session *one, enum stage stage) {
    char bracketed[OCTETS / 2];
    uint32_t offer[] = {htonl(6), htonl(0x1ff), htonl(0x1fffff)};
    uint16_t port = htons(4711);
    size_t packet = begin(one, commands[stage].letter);
    switch (stage) {
    case OFFER: add(one, offer, sizeof offer); break;
    case CONNECT: add_string(one, "client.example"), add(one, "4", 1), add(one, &port, 2), add_string(one, "192.0.2.7"); break;
    case HELO: add_string(one, "client.example"); break;
    case MAIL: add_string(one, "<sender@client.example>"), add_string(one, "SIZE=4096"); break;
    case RCPT:
        snprintf(bracketed, sizeof bracketed, "<%s>", one->recipient);
        add_string(one, bracketed);
    }
    finish(one, packet);
}

static void bare(struct session *one, char letter) { finish(one, begin(one, letter)); }

static void send_all(struct session *one) {
    if (one->out && write(one->socket, one->sending, one->out) != (ssize_t)one->out) die("write");
    one->out = 0;
}

static void open_session(struct session *one) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = SECONDS};
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    one->socket = socket(AF_UNIX, SOCK_STREAM, 0);
    setsockopt(one->socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(one->socket, (struct sockaddr *)&at, sizeof at)) die(path);
    one->told = one->transactions = 0;
    one->in = one->out = 0;
    one->steps = 0;
    one->recipient = NULL;
    for (int stage = 0; stage <= RCPT; stage++) strcpy(one->macros[stage], defaults[stage]);
}

static void end_session(struct session *one) {
    bare(one, 'Q');
    send_all(one);
    close(one->socket);
    one->socket = -1;
}

/* Tell on, from a stage, until there is a reply to wait for. */
static void proceed(struct session *one, enum stage stage) {
    for (;; stage++) {
        if (stage > RCPT) { /* the reply to a recipient was the last thing heard */
            stage = RCPT;
            if (++one->told == recipients) {
                bare(one, 'A');
                one->told = 0;
                one->recipient = NULL;
                stage = MAIL;
                if (++one->transactions == transactions) {
                    end_session(one);
                    open_session(one);
                    stage = OFFER;
                }
            }
        }
        if (stage == RCPT) {
            if (next == count || (warming && one->heard)) {
                one->parked = 1;
                return;
            }
            one->recipient = addresses[next++];
        }
        if (stage != OFFER && !(one->steps & commands[stage].no)) add_macros(one, stage);
        if (one->steps & commands[stage].no) {
            if (stage == RCPT) die("a milter that does not ask for recipients");
            continue;
        }
        add_command(one, stage);
        if (one->steps & commands[stage].no_reply) continue;
        one->at = stage;
        one->asked = now();
        send_all(one);
        return;
    }
}

static void negotiated(struct session *one, const char *data, size_t octets) {
    uint32_t number;
    if (octets < 12) die("a negotiation too short");
    memcpy(&number, data + 8, 4);
    one->steps = ntohl(number);
    const char *end = data + octets;
    for (data += 12; data + 5 < end; data += strlen(data) + 1) {
        memcpy(&number, data, 4);
        data += 4;
        if (!memchr(data, 0, end - data) || strlen(data) > 255) die("a list of macros");
        if (ntohl(number) + 1 <= RCPT) strcpy(one->macros[ntohl(number) + 1], data);
    }
}

/* Read what is there, and go on if a reply is complete. */
static void hear(struct session *one) {
    uint32_t length;
    ssize_t got = read(one->socket, one->hearing + one->in, OCTETS - one->in);
    if (got <= 0) die("read");
    one->in += got;
    if (one->in < 5) return;
    memcpy(&length, one->hearing, 4);
    length = ntohl(length);
    if (!length || length + 4 > OCTETS) die("the length of a reply");
    if (one->in < length + 4) return;
    if (one->in > length + 4) die("more than one reply");
    one->in = 0;
    const char *reply = one->hearing + 4;
    const char *must = one->at == OFFER ? "O" : one->at == RCPT ? wanted : "c";
    if (length < strlen(must) || strncmp(reply, must, strlen(must))) {
        fprintf(stderr, "mta: %.*s at stage %d\n", (int)length, reply, one->at);
        exit(1);
    }
    if (one->at == OFFER) negotiated(one, reply + 1, length - 1);
    if (one->at == RCPT) {
        waited[answered++] = now() - one->asked;
        one->heard = 1;
    }
    proceed(one, one->at + 1);
}

static void converse(int sessions, size_t until) {
    struct pollfd polled[MOST];
    while (answered < until) {
        for (int i = 0; i < sessions; i++) polled[i] = (struct pollfd){.fd = all[i].socket, .events = POLLIN};
        if (poll(polled, sessions, SECONDS * 1000) <= 0) die("poll");
        for (int i = 0; i < sessions; i++)
            if (polled[i].revents) hear(&all[i]);
    }
}

static void read_addresses(void) {
    size_t room = 0;
    char line[OCTETS / 4];
    while (fgets(line, sizeof line, stdin) && *line != '\n') {
        line[strcspn(line, "\n")] = 0;
        if (count == room && !(addresses = realloc(addresses, (room = room * 2 + 1024) * sizeof *addresses)))
            die("memory");
        if (!(addresses[count++] = strdup(line))) die("memory");
    }
    if (!(waited = calloc(count + 1, sizeof *waited))) die("memory");
}

static int ascending(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

int main(int words, char **word) {
    if (words != 6) return 64;
    int sessions = atoi(word[2]);
    path = word[1], recipients = atoi(word[3]), transactions = atoi(word[4]), wanted = word[5];
    if (sessions < 1 || sessions > MOST || recipients < 1 || transactions < 1) return 64;
    alarm(LIMIT);
    read_addresses();
    if (count < 2 * (size_t)sessions) return 64;

    for (int i = 0; i < sessions; i++) {
        open_session(&all[i]);
        proceed(&all[i], OFFER);
    }
    converse(sessions, sessions);
    puts("ready");
    fflush(stdout);
    char line[8];
    if (!fgets(line, sizeof line, stdin)) return 1;

    size_t before = answered, total = count - before;
    double began = now(), cpu = used();
    warming = 0;
    for (int i = 0; i < sessions; i++)
        if (all[i].parked) all[i].parked = 0, proceed(&all[i], RCPT);
    converse(sessions, count);
    double seconds = now() - began;
    cpu = used() - cpu;
    qsort(waited + before, total, sizeof *waited, ascending);
    printf("{\"answers\": %zu, \"seconds\": %.6f, \"generator\": %.6f, \"p50\": %.9f, \"p99\": %.9f}\n", total, seconds,
           cpu, waited[before + total / 2], waited[before + total * 99 / 100]);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {}
    return 0;
}
