/* A link with a delay: two tun devices, each in a network namespace of its own, and this program between them.
 *
 *   delay NAMESPACE NAMESPACE MICROSECONDS LOSS      the namespaces' files; LOSS is in packets of 10,000
 *
 * Every packet that leaves one end comes out of the other so much later, or is lost. Prints "ready" when both devices
 * are there, named `slow`; ends when its stdin does. What netem does in the kernel, for kernels without it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKET = 2048, ROOM = 8192 };
typedef long long ns;
static struct queue {
    struct { ns due; int length; char bytes[PACKET]; } packets[ROOM];
    unsigned head, tail;
} queues[2];

static ns now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int device(const char *namespace)
{
    struct ifreq request = {.ifr_name = "slow", .ifr_flags = IFF_TUN | IFF_NO_PI};
    int space = open(namespace, O_RDONLY | O_CLOEXEC), fd;
    if (space < 0 || setns(space, CLONE_NEWNET) || (fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK)) < 0 ||
        ioctl(fd, TUNSETIFF, &request)) {
        perror(namespace);
        exit(1);
    }
    close(space);
    return fd;
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    struct pollfd ends[3] = {{device(words[1]), POLLIN, 0}, {device(words[2]), POLLIN, 0}, {0, POLLIN, 0}};
    ns delay = atoll(words[3]) * 1000;
    int loss = atoi(words[4]);
    prctl(PR_SET_TIMERSLACK, 1);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ns at = now(), wait = -1;
        for (int i = 0; i < 2; i++) {
            struct queue *queue = &queues[i];
            for (; queue->head != queue->tail; queue->head++) {
                ns left = queue->packets[queue->head % ROOM].due - at;
                if (left > 0) {
                    wait = wait < 0 || left < wait ? left : wait;
                    break;
                }
                if (write(ends[!i].fd, queue->packets[queue->head % ROOM].bytes,
                          queue->packets[queue->head % ROOM].length) < 0)
                    continue; /* the other end is not up: the packet is lost */
            }
        }
        struct timespec patience = {wait / 1000000000, wait % 1000000000};
        ppoll(ends, 3, wait < 0 ? NULL : &patience, NULL);
        if (ends[2].revents)
            return 0;
        at = now();
        for (int i = 0; i < 2; i++)
            for (struct queue *queue = &queues[i]; queue->tail - queue->head < ROOM;) {
                int length = read(ends[i].fd, queue->packets[queue->tail % ROOM].bytes, PACKET);
                if (length <= 0)
                    break;
                queue->packets[queue->tail % ROOM].length = length;
                queue->packets[queue->tail % ROOM].due = at + delay;
                if (rand() % 10000 >= loss)
                    queue->tail++;
            }
    }
}
