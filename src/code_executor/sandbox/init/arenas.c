/* Theory of operation. CPython asks for the memory of its small objects by the MiB, from wherever
 * the kernel has room: pieces too small and too scattered for huge pages, each a mapping that a fork
 * copies. While a zygote warms up they are laid side by side here instead, to be put into huge pages
 * when it is warm (hugepages.h). From then on the interpreter's own way is taken again: a child gets
 * no more of the kernel than a new interpreter would.
 */
#include "arenas.h"

#include <stdint.h>
#include <sys/mman.h>

#include "capi.h"

enum { ARENA = 1 << 20, ARENAS_MAX = 512 };
static const uintptr_t ALIGNMENT = 2U << 20;

static struct arena_allocator usual;
static uintptr_t region;
static size_t used, spare_count;
static void *spare[ARENAS_MAX]; /* given back while warming up */
static int warm;

static void *take(void *context, size_t size)
{
    (void)context;
    if (warm || size != ARENA)
        return usual.alloc(usual.context, size);
    if (spare_count)
        return spare[--spare_count];
    void *arena = (void *)(region + used * ARENA);
    if (used == ARENAS_MAX || mprotect(arena, ARENA, PROT_READ | PROT_WRITE) < 0)
        return usual.alloc(usual.context, size);
    used++;
    return arena;
}

static void give_back(void *context, void *arena, size_t size)
{
    (void)context;
    if ((uintptr_t)arena - region >= used * ARENA)
        usual.free(usual.context, arena, size);
    else if (warm)
        (void)munmap(arena, size);
    else
        spare[spare_count++] = arena;
}

void arenas_begin(void)
{
    size_t size = (size_t)ARENA * ARENAS_MAX + ALIGNMENT;
    void *room = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return;
    region = ((uintptr_t)room + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
    PyObject_GetArenaAllocator(&usual);
    PyObject_SetArenaAllocator(&(struct arena_allocator){NULL, take, give_back});
}

void arenas_end(void)
{
    warm = 1;
    if (!region)
        return;
    while (spare_count)
        (void)munmap(spare[--spare_count], ARENA);
    (void)munmap((void *)(region + used * ARENA), (ARENAS_MAX - used) * ARENA);
}
