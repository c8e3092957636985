/* Uses huge pages for itself, and tells whether its constants are what they were, and where. */
#include <stdint.h>
#include <stdio.h>

#include "hugepages.h"

__asm__(".section .rodata\n.balign 4096\nconstants: .rept 786432\n.quad 0x0102030405060708\n.endr\n.text");
extern const uint64_t constants[];
enum { CONSTANTS = 786432 };

static uint64_t sum(void)
{
    uint64_t all = 0;
    for (size_t i = 0; i < CONSTANTS; i++)
        all += constants[i] ^ i;
    return all;
}

static int moved(void)
{
    char line[512];
    uintptr_t start, end, middle = (uintptr_t)(constants + CONSTANTS / 2);
    unsigned long file = 1;
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx r-xp %*s %*s %lu", &start, &end, &file) == 3 && start <= middle &&
            middle < end)
            break;
    if (maps)
        fclose(maps);
    return file == 0;
}

int main(void)
{
    uint64_t before = sum();
    use_huge_pages();
    printf("%s %s\n", sum() == before ? "same" : "different", moved() ? "moved" : "stayed");
    return 0;
}
