/* The loop around a fuzz target where there is no libFuzzer: seeds, changed at random, for a number
 * of turns. The same seed files, number and start give the same inputs on every machine.
 *
 *     fuzz SEED-OF-RANDOM TURNS SECONDS FILE...
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FILES_MOST = 64, INPUT_MOST = 16 * 1024, CHANGES_MOST = 6, TURNS_PER_PROCESS = 1000 };

struct input {
    uint8_t bytes[INPUT_MOST];
    size_t size;
};

static struct input seeds[FILES_MOST];
static size_t seed_count;
static uint64_t state;

static uint32_t chance(size_t below) /* xorshift64* */
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return below ? (uint32_t)((state * 0x2545F4914F6CDD1DULL >> 33) % below) : 0;
}

static void load(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file || seed_count == FILES_MOST)
        err(64, "%s", path);
    struct input *seed = &seeds[seed_count++];
    seed->size = fread(seed->bytes, 1, sizeof seed->bytes, file);
    fclose(file);
}

/* Put `size` bytes at `at`, moving or overwriting what is there, as far as there is room. */
static void splice(struct input *in, size_t at, const uint8_t *bytes, size_t size, int move)
{
    size_t room = sizeof in->bytes - (move ? in->size : at);
    if (size > room)
        size = room;
    if (move) {
        memmove(in->bytes + at + size, in->bytes + at, in->size - at);
        in->size += size;
    } else if (at + size > in->size) {
        in->size = at + size;
    }
    memcpy(in->bytes + at, bytes, size);
}

static void change(struct input *in)
{
    static const uint8_t EDGES[][4] = {{0}, {1}, {0xff, 0xff, 0xff, 0xff}, {0, 0, 1}, {0, 0, 0x40},
                                       {1, 0, 0x40}, {0xff, 0xff, 0xff, 0x7f}, {0, 0, 0, 0x80}};
    const struct input *other = &seeds[chance(seed_count)];
    size_t at = chance(in->size + 1), from = chance(other->size + 1);
    uint8_t byte = (uint8_t)chance(256);
    switch (chance(6)) {
    case 0:
        splice(in, at, &byte, 1, 0);
        break;
    case 1:
        splice(in, at, EDGES[chance(sizeof EDGES / sizeof *EDGES)], 4, 0);
        break;
    case 2:
        splice(in, at, &byte, 1, 1);
        break;
    case 3:
        splice(in, at, other->bytes + from, chance(other->size - from + 1), 1);
        break;
    case 4:
        if (at < in->size)
            in->bytes[at] ^= (uint8_t)(1U << chance(8));
        break;
    default: {
        size_t gone = chance(in->size - at + 1);
        memmove(in->bytes + at, in->bytes + at + gone, in->size - at - gone);
        in->size -= gone;
    }
    }
}

static void turn(unsigned long number, uint64_t start)
{
    static struct input in;
    state = (start + number + 1) * 0x9E3779B97F4A7C15ULL; /* each turn by its number alone */
    in = seeds[number < seed_count ? number : chance(seed_count)];
    for (uint32_t n = number < seed_count ? 0 : 1 + chance(CHANGES_MOST); n > 0; n--)
        change(&in);
    LLVMFuzzerTestOneInput(in.bytes, in.size);
}

/* In a process of its own, because giving up in the middle of a frame leaves its memory behind. */
static int turns(unsigned long first, unsigned long count, uint64_t start)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        for (unsigned long n = first; n < first + count; n++) {
            turn(n, start);
        }
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        err(70, "fork");
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 64;
    uint64_t start = strtoull(argv[1], NULL, 10);
    unsigned long wanted = strtoul(argv[2], NULL, 10), done = 0;
    time_t until = time(NULL) + atol(argv[3]);
    for (int i = 4; i < argc; i++)
        load(argv[i]);
    LLVMFuzzerInitialize(&argc, &argv);
    while (done < wanted && time(NULL) < until) {
        if (turns(done, TURNS_PER_PROCESS, start) != 0)
            errx(1, "an input of turns %lu to %lu", done, done + TURNS_PER_PROCESS - 1);
        done += TURNS_PER_PROCESS;
    }
    printf("%lu turns\n", done);
    return 0;
}
