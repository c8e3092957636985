#include "network.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { COUNTERS_MAX = 16384 };

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

static size_t append_file(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 0;
    while (fd >= 0 && size < COUNTERS_MAX && (n = read(fd, text + size, COUNTERS_MAX - size)) > 0)
        size += (size_t)n;
    if (fd >= 0)
        close(fd);
    return size;
}

/* The counters of the namespace that this process is in: of the interface, and of IP, ICMP, TCP
 * and UDP. */
static size_t counters(char *text)
{
    size_t size = append_file("/proc/self/net/dev", text, 0);
    return append_file("/proc/self/net/snmp", text, size);
}

static char pristine[COUNTERS_MAX];
static size_t pristine_size;

/* Sockets sent through each other in a circle outlive their process until the kernel's collector
 * of such garbage has run, which is a little later, and keep ports and names meanwhile. */
static int sockets_left(void)
{
    static const char NONE[] = "sockets: used 0\n";
    char text[sizeof NONE - 1];
    int fd = open("/proc/self/net/sockstat", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
    if (fd >= 0)
        close(fd);
    return n != (ssize_t)sizeof text || memcmp(text, NONE, sizeof text) != 0;
}

static int enter_again(int used)
{
    static char now[COUNTERS_MAX];
    if (setns(used, CLONE_NEWNET) < 0 || pristine_size == 0 || sockets_left())
        return 0;
    return counters(now) == pristine_size && memcmp(now, pristine, pristine_size) == 0;
}

int network_enter(int used)
{
    if (used >= 0) {
        if (enter_again(used))
            return used;
        close(used);
    }
    if (unshare(CLONE_NEWNET) < 0 || loopback_up() < 0)
        return -1;
    if (pristine_size == 0)
        pristine_size = counters(pristine);
    return open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
}
