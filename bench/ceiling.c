/* The ceiling: an NBD server that does what fio asks for, as well as a program of one thread can, and nothing else.
 *
 *   ceiling alone SIZE                 SIZE bytes of memory, served on the listening socket at descriptor 3
 *   ceiling secondary SIZE             the same, beside others on the same processors
 *   ceiling primary SIZE PORT ...      before secondaries at these ports: the first of equal parts of SIZE is its own,
 *                                      what falls in another is passed on, and answered when that has answered
 *
 * As in memcluster, whatever has come is read in one call, the answers to all of it leave in one, and bytes go from the
 * memory to the socket. But nothing is logged, repeated, bounded or counted, a request falls in one part, and who does
 * not keep to the protocol ends the program. So what it reaches under a load is about what any server of this shape could
 * show under it; the rest of the way to the bare socket (wire.c) is the client's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { LISTENER = 3, ENDS = 16, BUFFER = 2 << 20, IN_PLACE = 128 << 10, PARTS = 1024, SLOTS = 4096 };
enum { READ, WRITE, DISC, FLUSH };
enum { ABORT = 2, GO = 7, STRUCTURED_REPLY = 8 };
#define LOOK 50e-6 /* seconds, as memcluster's SPIN */

struct request {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct simple_reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct chunk {
    uint32_t magic;
    uint16_t flags, kind;
    uint64_t cookie;
    uint32_t length;
    uint64_t offset;
} __attribute__((packed));

/* A connection: to a client, or to a secondary. */
struct end {
    int fd, open, is_link, structured;
    size_t have, used;      /* bytes in the buffer, and those of them that are dealt with */
    size_t parts, headers;  /* what is to be sent: buffers, and bytes of their headers */
    struct iovec out[PARTS];
    char header[PARTS * sizeof(struct request)];
    char in[BUFFER];
};

/* A request that was passed on. */
struct slot {
    struct end *client;
    struct request request;
    uint32_t next;
};

static struct end ends[ENDS];
static struct slot slots[SLOTS];
static uint32_t free_slot;
static uint64_t size, share;
static char *memory;

static void fail(const char *what)
{
    fprintf(stderr, errno ? "%s: %s\n" : "%s\n", what, strerror(errno));
    exit(1);
}

/* -- what is to be sent ------------------------------------------------------------------------------------------- */

static void flush(struct end *end)
{
    struct iovec *at = end->out, *last = end->out + end->parts;
    while (at < last) {
        ssize_t sent = writev(end->fd, at, last - at);
        if (sent < 0)
            break; /* it is gone, and reading from it will say so */
        for (; at < last && (size_t)sent >= at->iov_len; at++)
            sent -= at->iov_len;
        if (at < last) {
            at->iov_base = (char *)at->iov_base + sent;
            at->iov_len -= sent;
        }
    }
    end->parts = end->headers = 0;
}

static void put(struct end *end, const void *header, size_t count, char *data, size_t length)
{
    if (end->parts > PARTS - 2)
        flush(end);
    end->out[end->parts++] = (struct iovec){memcpy(end->header + end->headers, header, count), count};
    end->headers += count;
    if (length)
        end->out[end->parts++] = (struct iovec){data, length};
}

static void answer(struct end *client, const struct request *asked, char *data)
{
    uint32_t length = data ? be32toh(asked->length) : 0;
    if (data && client->structured) {
        struct chunk chunk = {
            htobe32(0x668e33ef), htobe16(1), htobe16(1), asked->cookie, htobe32(length + 8), asked->offset,
        };
        put(client, &chunk, sizeof chunk, data, length);
    } else {
        struct simple_reply reply = {htobe32(0x67446698), 0, asked->cookie};
        put(client, &reply, sizeof reply, data, length);
    }
}

static void pass_on(struct end *client, const struct request *asked, uint64_t offset, char *payload)
{
    if (free_slot == SLOTS)
        fail("too many requests");
    struct slot *slot = &slots[free_slot];
    struct request piece = *asked;
    piece.cookie = free_slot;
    piece.offset = htobe64(offset % share);
    free_slot = slot->next;
    slot->client = client;
    slot->request = *asked;
    put(&ends[offset / share - 1], &piece, sizeof piece, payload, payload ? be32toh(asked->length) : 0);
}

/* -- what has come ------------------------------------------------------------------------------------------------ */

static void requests(struct end *client)
{
    size_t at = 0;
    while (client->have - at >= sizeof(struct request)) {
        struct request *asked = (void *)(client->in + at);
        uint64_t offset = be64toh(asked->offset);
        uint32_t length = be32toh(asked->length);
        int command = be16toh(asked->command), own = offset < share;
        char *payload = client->in + at + sizeof *asked;
        size_t come = client->have - at - sizeof *asked;
        if (command == DISC || command > FLUSH || offset + length > size || offset % share + length > share) {
            client->open = command != DISC;
            if (client->open)
                fail("a request that is not served here");
            break;
        }
        if (command == WRITE && come < length) {
            if (!own || length < IN_PLACE)
                break;
            memcpy(memory + offset, payload, come);
            length -= come;
            client->open = recv(client->fd, memory + offset + come, length, MSG_WAITALL) == (ssize_t)length;
            answer(client, asked, NULL);
            at = client->have;
            break;
        }
        at += sizeof *asked + (command == WRITE ? length : 0);
        if (!own)
            pass_on(client, asked, offset, command == WRITE ? payload : NULL);
        else {
            if (command == WRITE)
                memcpy(memory + offset, payload, length);
            answer(client, asked, command == READ ? memory + offset : NULL);
        }
    }
    client->used = at;
}

static void replies(struct end *link)
{
    size_t at = 0;
    while (link->have - at >= sizeof(struct simple_reply)) {
        struct simple_reply *reply = (void *)(link->in + at);
        struct slot *slot = &slots[reply->cookie];
        int reading = be16toh(slot->request.command) == READ;
        size_t whole = sizeof *reply + (reading ? be32toh(slot->request.length) : 0);
        if (link->have - at < whole)
            break;
        answer(slot->client, &slot->request, reading ? link->in + at + sizeof *reply : NULL);
        slot->next = free_slot;
        free_slot = reply->cookie;
        at += whole;
    }
    link->used = at;
}

static void receive(struct end *end)
{
    ssize_t got = recv(end->fd, end->in + end->have, BUFFER - end->have, MSG_DONTWAIT);
    if (got > 0) {
        end->have += got;
        if (end->is_link)
            replies(end);
        else
            requests(end);
    } else if (!got || errno != EAGAIN)
        end->open = 0;
    if (!end->open && end->is_link)
        fail("a secondary is gone");
}

/* -- the handshake ------------------------------------------------------------------------------------------------ */

static void take(int fd, void *where, size_t count)
{
    if (recv(fd, where, count, MSG_WAITALL) != (ssize_t)count)
        fail("handshake");
}

static void give(int fd, const void *what, size_t count)
{
    if (send(fd, what, count, MSG_NOSIGNAL) != (ssize_t)count)
        fail("handshake");
}

static struct end *begin(int fd, int is_link)
{
    struct end *end = ends;
    int on = 1;
    while (end->open)
        if (++end == ends + ENDS)
            fail("too many connections");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* as memcluster does: nothing is paced */
    end->fd = fd;
    end->open = 1;
    end->is_link = is_link;
    end->structured = 0;
    end->have = end->used = end->parts = end->headers = 0;
    return end;
}

struct option_reply {
    uint64_t magic;
    uint32_t option, kind, length;
} __attribute__((packed));

static void reply_option(int fd, uint32_t option, uint32_t kind, uint32_t length)
{
    struct option_reply reply = {htobe64(0x3e889045565a9), option, htobe32(kind), htobe32(length)};
    give(fd, &reply, sizeof reply);
}

static void let_in(int fd)
{
    struct {
        uint64_t magic;
        uint32_t option, length;
    } __attribute__((packed)) asked;
    struct {
        uint16_t kind;
        uint64_t size;
        uint16_t flags;
    } __attribute__((packed)) info = {0, htobe64(size), htobe16(1 | 4)};
    char data[4096], flags[4];
    struct end *end = begin(fd, 0);
    give(fd, "NBDMAGICIHAVEOPT\0\3", 18);
    take(fd, flags, sizeof flags);
    for (;;) {
        take(fd, &asked, sizeof asked);
        if (be32toh(asked.length) > sizeof data)
            fail("a long option");
        if (asked.length)
            take(fd, data, be32toh(asked.length));
        switch (be32toh(asked.option)) {
        case GO:
            reply_option(fd, asked.option, 3, sizeof info);
            give(fd, &info, sizeof info);
            reply_option(fd, asked.option, 1, 0);
            return;
        case ABORT:
            reply_option(fd, asked.option, 1, 0);
            end->open = 0;
            close(fd);
            return;
        case STRUCTURED_REPLY:
            end->structured = 1;
            reply_option(fd, asked.option, 1, 0);
            break;
        default:
            reply_option(fd, asked.option, 0x80000001, 0);
        }
    }
}

static void link_to(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port),
    };
    struct {
        uint32_t flags;
        uint64_t magic;
        uint32_t option, length, name;
        uint16_t infos;
    } __attribute__((packed)) go = {htobe32(3), htobe64(0x49484156454f5054), htobe32(GO), htobe32(6), 0, 0};
    char said[18 + 2 * sizeof(struct option_reply) + 12];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (void *)&address, sizeof address))
        fail("connect");
    give(fd, &go, sizeof go);
    take(fd, said, sizeof said);
    begin(fd, 1);
}

/* -- the loop ----------------------------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Who has a processor for it looks for something to do before it sleeps; the others let those go first that have. */
static void wait_for(struct pollfd *watched, int count, int alone)
{
    if (alone) {
        for (double until = now() + LOOK; now() < until;)
            if (poll(watched, count, 0))
                return;
    } else
        sched_yield();
    poll(watched, count, -1);
}

static void turn(int alone)
{
    struct pollfd watched[ENDS + 1] = {{LISTENER, POLLIN, 0}};
    struct end *of[ENDS + 1];
    int count = 1;
    for (struct end *end = ends; end < ends + ENDS; end++)
        if (end->open) {
            of[count] = end;
            watched[count++] = (struct pollfd){end->fd, POLLIN, 0};
        }
    wait_for(watched, count, alone);
    for (int i = 1; i < count; i++)
        if (watched[i].revents)
            receive(of[i]);
    for (int i = 1; i < count; i++)
        flush(of[i]); /* links stand first: the others work meanwhile */
    for (int i = 1; i < count; i++) { /* only now, for what was sent may have lain in a buffer */
        struct end *end = of[i];
        end->have -= end->used;
        if (end->used)
            memmove(end->in, end->in + end->used, end->have);
        end->used = 0;
        if (!end->open)
            close(end->fd);
    }
    if (watched[0].revents)
        let_in(accept(LISTENER, NULL, NULL));
}

int main(int count, char **words)
{
    if (count < 3) {
        fprintf(stderr, "see the top of ceiling.c\n");
        return 2;
    }
    int alone = !strcmp(words[1], "alone");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(words[1], "secondary")) /* as memcluster's: it does not interrupt the primary, which is still asking */
        sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0});
    size = strtoull(words[2], NULL, 10);
    share = size / (count - 2);
    memory = mmap(NULL, share, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    for (uint32_t i = 0; i < SLOTS; i++)
        slots[i].next = i + 1;
    for (int i = 3; i < count; i++)
        link_to(atoi(words[i]));
    for (;;)
        turn(alone);
}
