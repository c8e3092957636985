/* Init with sanitizers, driven over its control channel (descriptor 3) by a test, which is also its
 * zygote (descriptor 4).
 *
 *     drive_init DIRECTORY none|exec|zygote [INTERPRETER ARGUMENT...]
 *
 * All of init is the real one but for the two parts that need a sandbox's namespaces: setting it
 * up (place.c makes a root instead) and becoming the program (which keeps its rights here). They
 * are replaced when it is linked. */
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "become.h"
#include "init.h"
#include "place.h"
#include "setup.h"

enum { CONTROL = 3, ZYGOTE = 4 };

const char *setup_sandbox(const struct sandbox *sandbox)
{
    (void)sandbox;
    return getpid() == 1 ? NULL : "first process";
}

const char *become_program(uint32_t processes, const struct filter *filter, int keep)
{
    (void)processes;
    (void)filter;
    if (setsid() < 0 || chdir("/work") < 0)
        return "chdir";
    return syscall(SYS_close_range, (unsigned)keep + 1, ~0U, 0) < 0 ? "close descriptors" : NULL;
}

int main(int argc, char **argv)
{
    static char source[] = "main.txt", path[] = "PATH=/usr/bin:/bin";
    char *env[] = {path, NULL};
    struct sandbox box = {.source = source, .env = env};
    struct filter none = {NULL, 0};
    if (argc < 3)
        return 64;
    box.warm = strcmp(argv[2], "exec") == 0 ? WARM_EXEC :
               strcmp(argv[2], "zygote") == 0 ? WARM_ZYGOTE : WARM_NONE;
    box.argv = argv + 3;
    box.processes = 64;
    box.zygote = ZYGOTE;
    enter_place(argv[1]);
    init_serve(CONTROL, CONTROL, &box, &none);
}
