/* Theory of operation. CPython asks for the memory of its small objects by the MiB, from wherever
 * the kernel has room: pieces too small and too scattered for huge pages, each a mapping that a fork
 * copies. While a zygote warms up they are laid side by side here instead, to be put into huge pages
 * when it is warm (hugepages.h). From then on the interpreter's own way is taken again: a child gets
 * no more of the kernel than a new interpreter would.
 *
 * What is free by then lies here and there between what is not, and whatever a child puts there is a
 * page to be copied. So the remnants are used up: a child's small objects of a size lie together in
 * one pool, begun for it, and what is larger at the end of the heap.
 */
#include "arenas.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "capi.h"

enum { ARENA = 1 << 20, ARENAS_MAX = 512 };
enum { POOL = 16 << 10, POOL_HEAD = 48, SMALL = 512, STEP = 16, REMNANTS_MAX = 64 };
enum { CHUNK_MIN = 32, CHUNK_MAX = 64 << 10, CHUNKS_MAX = 4096 };
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

/* Until the block is the first of a new pool (obmalloc.c); all of them stay taken. */
static void begin_pool(size_t size)
{
    for (size_t tries = REMNANTS_MAX * POOL / size; tries; tries--)
        if (((uintptr_t)PyObject_Malloc(size) & (POOL - 1)) == POOL_HEAD)
            return;
}

/* What lies below the end of the heap and is free, from the largest to the smallest. */
static void fill_heap(void)
{
    void *end = malloc(CHUNK_MAX);
    for (size_t size = CHUNK_MAX; size >= CHUNK_MIN; size -= STEP)
        for (size_t tries = CHUNKS_MAX; tries; tries--) {
            void *chunk = malloc(size);
            if (chunk < end)
                continue;
            free(chunk);
            break;
        }
    free(end);
}

void arenas_use_up(void)
{
    (void)PyGC_Collect(); /* it lets go of what types keep for their next objects */
    for (size_t size = STEP; size <= SMALL; size += STEP)
        begin_pool(size);
    fill_heap();
}
