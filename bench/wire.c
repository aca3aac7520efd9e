/* The limit: what a client and a server reach that do nothing but move the bytes.
 *
 *   wire TRANSPORT HOPS REQUEST REPLY DEPTH SECONDS      TRANSPORT: tcp, unix or udp
 *
 * A client keeps DEPTH requests of REQUEST bytes in flight and gets REPLY bytes for each; whatever has come together is
 * read in one call and answered in one call. With HOPS 2 a relay between them passes the bytes on. Prints replies a
 * second. With udp, DEPTH and HOPS are 1 and each message is one datagram.
 *
 *   wire flood SIZE COUNT        COUNT datagrams of SIZE bytes, sent as fast as they will go; prints the share that arrives
 *   wire memcpy BLOCK SECONDS    bytes a second that a copy of 64 MiB, BLOCK bytes at a time, moves
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 20, AREA = 64 << 20 };
static char buffer[CHUNK];
static char payload[AREA];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void send_all(int fd, size_t count)
{
    while (count) {
        ssize_t sent = send(fd, payload, count < AREA ? count : AREA, MSG_NOSIGNAL);
        if (sent <= 0)
            exit(0);
        count -= sent;
    }
}

/* Whole messages of `size` bytes that have come, at least one; `have` is what is left of a torn one. */
static size_t receive(int fd, size_t size, size_t *have)
{
    while (*have < size) {
        ssize_t got = recv(fd, buffer, CHUNK, 0);
        if (got <= 0)
            exit(0);
        *have += got;
    }
    size_t whole = *have / size;
    *have %= size;
    return whole;
}

static void serve(int fd, size_t request, size_t reply)
{
    for (size_t have = 0;;)
        send_all(fd, receive(fd, request, &have) * reply);
}

static void relay(int near, int far)
{
    struct pollfd ends[2] = {{near, POLLIN, 0}, {far, POLLIN, 0}};
    for (;;) {
        poll(ends, 2, -1);
        for (int i = 0; i < 2; i++)
            if (ends[i].revents) {
                ssize_t got = recv(ends[i].fd, buffer, CHUNK, 0);
                if (got <= 0)
                    exit(0);
                for (ssize_t done = 0; done < got;) {
                    ssize_t sent = send(ends[!i].fd, buffer + done, got - done, MSG_NOSIGNAL);
                    if (sent <= 0)
                        exit(0);
                    done += sent;
                }
            }
    }
}

static double drive(int fd, size_t request, size_t reply, size_t depth, double seconds)
{
    size_t have = 0, replies = 0;
    double start = now(), end = start + seconds, at;
    send_all(fd, depth * request);
    do {
        size_t whole = receive(fd, reply, &have);
        replies += whole;
        send_all(fd, whole * request);
    } while ((at = now()) < end);
    return replies / (at - start);
}

/* A connected pair of sockets. */
static void connected(int unix_domain, int ends[2])
{
    if (unix_domain) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
            fail("socketpair");
        return;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (bind(listener, (void *)&address, length) || listen(listener, 1) ||
        getsockname(listener, (void *)&address, &length))
        fail("listen");
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(ends[0], (void *)&address, length))
        fail("connect");
    ends[1] = accept(listener, NULL, NULL);
    close(listener);
    for (int i = 0; i < 2; i++) {
        setsockopt(ends[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        setsockopt(ends[i], IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* as memcluster does: nothing is paced */
    }
}

static void datagrams(int ends[2], int room)
{
    struct sockaddr_in address[2];
    for (int i = 0; i < 2; i++) {
        socklen_t length = sizeof address[i];
        address[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        ends[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (room)
            setsockopt(ends[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        if (bind(ends[i], (void *)&address[i], length) || getsockname(ends[i], (void *)&address[i], &length))
            fail("bind");
    }
    for (int i = 0; i < 2; i++)
        if (connect(ends[i], (void *)&address[!i], sizeof address[!i]))
            fail("connect");
}

static pid_t children[2];
static int child_count;

static int child(void)
{
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (!pid)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    else
        children[child_count++] = pid;
    return !pid;
}

static void udp_serve(int fd, size_t reply)
{
    for (;;)
        if (recv(fd, buffer, CHUNK, 0) < 0 || send(fd, payload, reply, 0) < 0)
            exit(0);
}

static double udp_drive(int fd, size_t request, double seconds)
{
    size_t replies = 0;
    double start = now(), end = start + seconds, at;
    do {
        if (send(fd, payload, request, 0) < 0 || recv(fd, buffer, CHUNK, 0) < 0)
            fail("udp");
        replies++;
    } while ((at = now()) < end);
    return replies / (at - start);
}

static double flood(size_t size, size_t count)
{
    int ends[2], counts[2];
    size_t arrived = 0;
    datagrams(ends, 0);
    if (pipe(counts))
        fail("pipe");
    if (child()) {
        struct timeval patience = {1, 0}; /* nothing for so long: that was all */
        setsockopt(ends[1], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        while (recv(ends[1], buffer, CHUNK, 0) > 0)
            arrived++;
        if (write(counts[1], &arrived, sizeof arrived) < 0)
            exit(1);
        exit(0);
    }
    for (size_t i = 0; i < count; i++)
        if (send(ends[0], payload, size, 0) < 0)
            fail("send");
    if (read(counts[0], &arrived, sizeof arrived) < 0)
        fail("read");
    return (double)arrived / count;
}

static double copy(size_t block, double seconds)
{
    char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (area == MAP_FAILED)
        fail("mmap");
    size_t bytes = 0;
    double start = now(), end = start + seconds, at;
    do {
        for (size_t at_byte = 0; at_byte + block <= AREA; at_byte += block, bytes += block)
            memcpy(payload + at_byte, area + at_byte, block);
    } while ((at = now()) < end);
    return bytes / (at - start);
}

int main(int count, char **words)
{
    double result;
    memset(payload, 1, AREA);
    if (count == 4 && !strcmp(words[1], "flood"))
        result = flood(atol(words[2]), atol(words[3]));
    else if (count == 4 && !strcmp(words[1], "memcpy"))
        result = copy(atol(words[2]), atof(words[3]));
    else if (count == 7) {
        size_t request = atol(words[3]), reply = atol(words[4]), depth = atol(words[5]);
        double seconds = atof(words[6]);
        int near[2], far[2];
        if (!strcmp(words[1], "udp")) {
            datagrams(near, 4 << 20);
            if (child())
                udp_serve(near[1], reply);
            result = udp_drive(near[0], request, seconds);
        } else {
            int unix_domain = !strcmp(words[1], "unix");
            connected(unix_domain, near);
            if (atoi(words[2]) == 2) {
                connected(unix_domain, far);
                if (child())
                    relay(near[1], far[0]);
                if (child())
                    serve(far[1], request, reply);
            } else if (child())
                serve(near[1], request, reply);
            result = drive(near[0], request, reply, depth, seconds);
        }
    } else {
        fprintf(stderr, "see the top of wire.c\n");
        return 2;
    }
    while (child_count--) {
        kill(children[child_count], SIGKILL);
        waitpid(children[child_count], NULL, 0);
    }
    printf("%.6f\n", result);
    return 0;
}
