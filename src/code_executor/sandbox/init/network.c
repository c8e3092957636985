#include "network.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { COUNTERS_MAX = 16384, KEPT_MAX = 64 };

/* A namespace, and what is read of it before it is used again. These stay open: to find them costs
 * more than to read them. */
struct network {
    int self, sockets, device, protocols, protocols6, routes6;
};

static struct network kept[KEPT_MAX];
static int kept_count;

static int loopback_up(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    int result = ioctl(fd, SIOCSIFFLAGS, &request);
    close(fd);
    return result;
}

static void network_close(struct network *n)
{
    close(n->self);
    close(n->sockets);
    close(n->device);
    close(n->protocols);
    close(n->protocols6);
    close(n->routes6);
    *n = (struct network){-1, -1, -1, -1, -1, -1};
}

/* Of the namespace that this process is in. */
static int network_open(struct network *n)
{
    n->routes6 = -1;
    n->self = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    n->sockets = open("/proc/self/net/sockstat", O_RDONLY | O_CLOEXEC);
    n->device = open("/proc/self/net/dev", O_RDONLY | O_CLOEXEC);
    n->protocols = open("/proc/self/net/snmp", O_RDONLY | O_CLOEXEC);
    n->protocols6 = open("/proc/self/net/snmp6", O_RDONLY | O_CLOEXEC);
    if (n->protocols6 >= 0)
        n->routes6 = open("/proc/self/net/rt6_stats", O_RDONLY | O_CLOEXEC);
    int complete = n->routes6 >= 0 || errno == ENOENT; /* a kernel without IPv6 */
    if (complete && n->self >= 0 && n->sockets >= 0 && n->device >= 0 && n->protocols >= 0)
        return 0;
    int saved = errno;
    network_close(n);
    errno = saved;
    return -1;
}

static size_t append(int fd, char *text, size_t size)
{
    size_t start = size;
    ssize_t n = 0;
    while (size < COUNTERS_MAX &&
           (n = pread(fd, text + size, COUNTERS_MAX - size, (off_t)(size - start))) > 0)
        size += (size_t)n;
    return n < 0 ? COUNTERS_MAX : size;
}

/* The counters of the interface, and of IP, ICMP, TCP and UDP, which know of packets that never came
 * to an interface: for want of a route, say. IPv6 keeps a route for each processor on which a socket
 * was connected, and tells how many. */
static size_t counters(const struct network *n, char *text)
{
    size_t size = append(n->protocols, text, append(n->device, text, 0));
    return n->protocols6 < 0 ? size : append(n->routes6, text, append(n->protocols6, text, size));
}

static char pristine[COUNTERS_MAX];
static size_t pristine_size;

/* Sockets sent through each other in a circle outlive their process until the kernel's collector
 * of such garbage has run, which is a little later, and keep ports and names meanwhile. */
static int sockets_left(const struct network *n)
{
    static const char NONE[] = "sockets: used 0\n";
    char text[sizeof NONE - 1];
    ssize_t size = pread(n->sockets, text, sizeof text, 0);
    return size != (ssize_t)sizeof text || memcmp(text, NONE, sizeof text) != 0;
}

static int as_new(const struct network *n)
{
    static char now[COUNTERS_MAX];
    if (pristine_size == 0 || pristine_size == COUNTERS_MAX || sockets_left(n))
        return 0;
    return counters(n, now) == pristine_size && memcmp(now, pristine, pristine_size) == 0;
}

static int enter_new(struct network *n)
{
    if (unshare(CLONE_NEWNET) < 0 || loopback_up() < 0 || network_open(n) < 0)
        return -1;
    if (pristine_size == 0)
        pristine_size = counters(n, pristine);
    return 0;
}

int network_enter(int used, int *taken)
{
    struct network made;
    int again = used >= 0 && used < kept_count;
    *taken = again ? used : -1;
    if (again && as_new(&kept[used]) && setns(kept[used].self, CLONE_NEWNET) == 0)
        return 0;
    if (again)
        network_close(&kept[used]);
    if (enter_new(&made) < 0)
        return -1;
    if (!again && kept_count < KEPT_MAX)
        *taken = kept_count++;
    if (*taken < 0)
        network_close(&made);
    else
        kept[*taken] = made;
    return 0;
}

void network_forget(int taken)
{
    if (taken >= 0 && taken == kept_count - 1)
        network_close(&kept[--kept_count]);
}
