/* Owns the threads of a block: fibers on stacks of their own, which run until they wait for one
 * another. One block at a time in the whole process (the device's lock).
 *
 * A wait is (counter, value seen): the fiber may go on once the counter has moved. When no fiber
 * may go on and not all have returned, the kernel would hang: everybody's place is printed. */
#include "tests/emulation/emulation_internal.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace
{
enum : size_t { STACK_BYTES = 64 * 1024, THREADS_MAX = 1024 };
/* Whole pages, and a little before the largest block's. */
enum : size_t {
    SHARED_BYTES = EMULATION_SHARED_LIMIT / EMULATION_PAGE * EMULATION_PAGE + EMULATION_PAGE
};
constexpr unsigned LANES = 32;

#if defined(__x86_64__)
using context = void *; /* stack pointer; the registers lie on the stack */
#else
using context = ucontext_t;
#endif

struct fiber {
    context place;
    uint3 thread;
    unsigned number;
    bool done;
    const unsigned *counter; /* waits until *counter != seen; nullptr: runs */
    unsigned seen;
    const char *where; /* of the last wait */
    int line;
};

/* Lanes of one warp that meet with one mask. */
struct meeting {
    unsigned mask, arrived, count; /* count: meetings so far */
    const char *what;
    int line;
    alignas(16) char slots[2][LANES][EMULATION_SLOT]; /* this meeting's and the next one's */
};

struct block_state {
    unsigned threads, returned, arrived, count;
    const char *where;
    int line, any, result;
    std::deque<meeting> meetings[THREADS_MAX / LANES]; /* which do not move */
};

std::vector<fiber> fibers;
block_state block;
context scheduler;
fiber *current;
const emulation_kernel *running;
char *stacks;
char *shared_end; /* a page that nobody may touch begins here */
uint64_t order_seed, order_state, kernels_run;

#if defined(__x86_64__)
extern "C" void emulation_switch(void **from, void *to);
asm(".text\n"
    ".type emulation_switch, @function\n"
    "emulation_switch:\n"
    "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n"
    "ret\n"
    ".size emulation_switch, .-emulation_switch\n");

void context_switch(context &from, context &to)
{
    emulation_switch(&from, to);
}

/* A frame that emulation_switch returns into `entry` with. */
void context_make(context &made, char *stack, void (*entry)())
{
    void **top = reinterpret_cast<void **>(stack + STACK_BYTES);
    *--top = nullptr; /* entry's return address: it never returns */
    *--top = reinterpret_cast<void *>(entry);
    top -= 6;
    std::fill(top, top + 6, nullptr);
    made = top;
}
#else
void context_switch(context &from, context &to)
{
    swapcontext(&from, &to);
}

void context_make(context &made, char *stack, void (*entry)())
{
    getcontext(&made);
    made.uc_stack.ss_sp = stack;
    made.uc_stack.ss_size = STACK_BYTES;
    made.uc_link = nullptr;
    makecontext(&made, entry, 0);
}
#endif

/* Both guarded by pages out of reach: stacks from below, shared memory from above. */
void allocate_areas()
{
    size_t step = STACK_BYTES + EMULATION_PAGE;
    void *area = mmap(nullptr, step * THREADS_MAX, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *shared =
        mmap(nullptr, SHARED_BYTES + EMULATION_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED || shared == MAP_FAILED) {
        emulation_fail("no memory for the stacks of a block");
    }
    stacks = static_cast<char *>(area);
    for (size_t i = 0; i < THREADS_MAX; i++) {
        mprotect(stacks + i * step + EMULATION_PAGE, STACK_BYTES, PROT_READ | PROT_WRITE);
    }
    mprotect(shared, SHARED_BYTES, PROT_READ | PROT_WRITE);
    shared_end = static_cast<char *>(shared) + SHARED_BYTES;
}

void fiber_main()
{
    running->thread();
    current->done = true;
    block.returned++;
    context_switch(current->place, scheduler);
    __builtin_unreachable();
}

void wait_for(const unsigned *counter, const char *where, int line)
{
    current->counter = counter;
    current->seen = *counter;
    current->where = where;
    current->line = line;
    context_switch(current->place, scheduler);
}

/* --- static shared memory --------------------------------------------------------------------- */

struct range {
    char *data;
    size_t bytes;
};

/* Function-local static variables of C++ ("_ZZ...") without a first value: in a test program those
 * are the __shared__ ones, since nothing else here may have any. */
bool is_shared_symbol(const Elf64_Sym &symbol, const Elf64_Shdr *sections, const char *name)
{
    return ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT && strncmp(name, "_ZZ", 3) == 0 &&
           symbol.st_shndx < SHN_LORESERVE && sections[symbol.st_shndx].sh_type == SHT_NOBITS;
}

int program_base(dl_phdr_info *info, size_t, void *base)
{
    *static_cast<uintptr_t *>(base) = info->dlpi_addr;
    return 1; /* the first one is the program itself */
}

void collect_symbols(const char *file, std::vector<range> &out)
{
    uintptr_t base = 0;
    dl_iterate_phdr(program_base, &base);
    const auto *header = reinterpret_cast<const Elf64_Ehdr *>(file);
    const auto *sections = reinterpret_cast<const Elf64_Shdr *>(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) {
            continue;
        }
        const auto *symbols = reinterpret_cast<const Elf64_Sym *>(file + sections[i].sh_offset);
        const char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); s++) {
            if (is_shared_symbol(symbols[s], sections, names + symbols[s].st_name)) {
                out.push_back({reinterpret_cast<char *>(base + symbols[s].st_value),
                               static_cast<size_t>(symbols[s].st_size)});
            }
        }
    }
}

std::vector<range> find_static_shared()
{
    std::vector<range> found;
    struct stat info;
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &info) != 0) {
        emulation_fail("cannot read this program's symbols");
    }
    void *file = mmap(nullptr, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED) {
        emulation_fail("cannot map this program");
    }
    collect_symbols(static_cast<const char *>(file), found);
    munmap(file, (size_t)info.st_size);
    return found;
}

std::vector<range> static_shared;

/* By hand: AddressSanitizer guards the gaps between variables, which may be overwritten here. */
__attribute__((no_sanitize("address"))) void poison_shared()
{
    for (const range &r : static_shared) {
        for (size_t i = 0; i < r.bytes; i++) {
            static_cast<volatile char *>(r.data)[i] = (char)0xff;
        }
    }
    memset(shared_end - running->shared_bytes - EMULATION_PAGE / 8, 0xff,
           running->shared_bytes + EMULATION_PAGE / 8);
}

/* --- turns ------------------------------------------------------------------------------------ */

uint64_t order_next()
{
    order_state = order_state * 6364136223846793005u + 1442695040888963407u;
    return order_state >> 33;
}

void order_fill(std::vector<unsigned> &order, size_t count)
{
    order.resize(count);
    for (size_t i = 0; i < count; i++) {
        order[i] = (unsigned)(order_seed == 1 ? count - 1 - i : i);
    }
    for (size_t i = count; order_seed > 1 && i > 1; i--) {
        std::swap(order[i - 1], order[order_next() % i]);
    }
}

[[noreturn]] void report_hang()
{
    fprintf(stderr, "kernel %s, block %u %u %u: its threads wait for one another for ever\n",
            running->name, blockIdx.x, blockIdx.y, blockIdx.z);
    for (size_t i = 0; i < fibers.size(); i++) {
        const fiber &f = fibers[i];
        const fiber &before = fibers[i == 0 ? 0 : i - 1];
        if (i > 0 && f.done == before.done && f.where == before.where && f.line == before.line) {
            continue; /* like its neighbour */
        }
        fprintf(stderr, "  from thread %u %u %u on: %s %s:%d\n", f.thread.x, f.thread.y, f.thread.z,
                f.done ? "returned; last waited at" : "waits at",
                f.where == nullptr ? "nowhere" : f.where, f.line);
    }
    emulation_fail("kernel %s does not end", running->name);
}

void start_fibers()
{
    unsigned count = running->block.x * running->block.y * running->block.z;
    fibers.resize(count);
    for (unsigned i = 0; i < count; i++) {
        fiber &f = fibers[i];
        f = fiber();
        f.number = i;
        f.thread = {i % running->block.x, i / running->block.x % running->block.y,
                    i / running->block.x / running->block.y};
        context_make(f.place, stacks + i * (STACK_BYTES + EMULATION_PAGE) + EMULATION_PAGE,
                     fiber_main);
    }
    block.threads = count;
    block.returned = block.arrived = 0;
    for (unsigned w = 0; w < (count + LANES - 1) / LANES; w++) {
        block.meetings[w].clear();
    }
}

void run_block()
{
    static_assert(THREADS_MAX == 1024, "CUDA's limit");
    std::vector<unsigned> order;
    poison_shared();
    start_fibers();
    order_fill(order, fibers.size());
    while (block.returned < block.threads) {
        bool moved = false;
        for (unsigned i : order) {
            fiber &f = fibers[i];
            if (f.done || (f.counter != nullptr && *f.counter == f.seen)) {
                continue;
            }
            f.counter = nullptr;
            current = &f;
            threadIdx = f.thread;
            context_switch(scheduler, f.place);
            moved = true;
        }
        if (!moved) {
            report_hang();
        }
    }
    const char *below = shared_end - running->shared_bytes - EMULATION_PAGE / 8;
    for (size_t i = 0; i < EMULATION_PAGE / 8; i++) {
        if (below[i] != (char)0xff) {
            emulation_fail("kernel %s wrote before its dynamic shared memory", running->name);
        }
    }
}

/* --- meetings --------------------------------------------------------------------------------- */

meeting &find_meeting(unsigned mask, const char *what)
{
    unsigned warp = current->number / LANES;
    unsigned lanes = std::min(LANES, block.threads - warp * LANES);
    unsigned exist = lanes == LANES ? 0xffffffffu : (1u << lanes) - 1;
    if ((mask >> (current->number % LANES) & 1) == 0 || (mask & ~exist) != 0) {
        emulation_fail("kernel %s, %s: lane %u of a warp with %u lanes names the mask %08x",
                       running->name, what, current->number % LANES, lanes, mask);
    }
    for (meeting &m : block.meetings[warp]) {
        if (m.mask == mask) {
            return m;
        }
    }
    if (block.meetings[warp].size() == LANES) {
        emulation_fail("kernel %s: a warp meets with more than 32 masks", running->name);
    }
    block.meetings[warp].push_back(meeting());
    block.meetings[warp].back().mask = mask;
    return block.meetings[warp].back();
}

/* Hand in `mine`, wait for the other lanes; returns the slots of this meeting. */
const char *meet(unsigned mask, const char *what, int line, const void *mine, size_t bytes)
{
    meeting &m = find_meeting(mask, what);
    unsigned lane = current->number % LANES;
    unsigned half = m.count % 2;
    if (m.arrived == 0) {
        m.what = what;
        m.line = line;
    } else if (strcmp(m.what, what) != 0 || m.line != line) {
        emulation_fail("kernel %s: lane %u is at %s:%d while others of its warp are at %s:%d",
                       running->name, lane, what, line, m.what, m.line);
    }
    if (bytes > EMULATION_SLOT) {
        emulation_fail("%s hands %zu bytes to its warp, at most %d", what, bytes, EMULATION_SLOT);
    }
    if (bytes > 0) {
        memcpy(m.slots[half][lane], mine, bytes);
    }
    m.arrived |= 1u << lane;
    if (m.arrived == mask) {
        m.arrived = 0;
        m.count++;
    } else {
        wait_for(&m.count, what, line);
    }
    return m.slots[half][0];
}
} // namespace

void emulation_fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("emulated GPU: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    abort();
}

unsigned emulation_lane()
{
    return current->number % LANES;
}

char *emulation_shared()
{
    return shared_end - running->shared_bytes;
}

int emulation_sync_block_or(int value, const char *file, int line)
{
    if (block.arrived == 0) {
        block.where = file;
        block.line = line;
        block.any = 0;
    } else if (block.line != line || strcmp(block.where, file) != 0) {
        emulation_fail("kernel %s: a thread is at the barrier %s:%d, others are at %s:%d",
                       running->name, file, line, block.where, block.line);
    }
    block.any |= value != 0;
    block.arrived++;
    if (block.arrived == block.threads) {
        block.arrived = 0;
        block.result = block.any;
        block.count++;
    } else {
        wait_for(&block.count, file, line);
    }
    return block.result;
}

void emulation_sync_block(const char *file, int line)
{
    (void)emulation_sync_block_or(0, file, line);
}

void emulation_sync_warp(const char *file, int line, unsigned mask)
{
    (void)meet(mask, file, line, nullptr, 0);
}

const char *emulation_warp_gather(unsigned mask, const char *what, const void *mine, size_t bytes)
{
    return meet(mask, what, 0, mine, bytes);
}

unsigned __ballot_sync(unsigned mask, int predicate)
{
    int mine = predicate != 0;
    const char *slots = emulation_warp_gather(mask, "__ballot_sync", &mine, sizeof mine);
    unsigned result = 0;
    for (unsigned lane = 0; lane < LANES; lane++) {
        if ((mask >> lane & 1) != 0 && slots[lane * EMULATION_SLOT] != 0) {
            result |= 1u << lane;
        }
    }
    return result;
}

int __any_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) != 0;
}

int __all_sync(unsigned mask, int predicate)
{
    return __ballot_sync(mask, predicate) == mask;
}

void emulation_run_grid(const emulation_kernel &kernel)
{
    if (stacks == nullptr) {
        allocate_areas();
        static_shared = find_static_shared();
    }
    emulation_kernel padded = kernel;
    padded.shared_bytes = (kernel.shared_bytes + 15) / 16 * 16;
    running = &padded;
    kernels_run++;
    blockDim = kernel.block;
    gridDim = kernel.grid;
    order_state = order_seed;
    std::vector<unsigned> order;
    order_fill(order, (size_t)kernel.grid.x * kernel.grid.y * kernel.grid.z);
    for (unsigned b : order) {
        blockIdx = {b % kernel.grid.x, b / kernel.grid.x % kernel.grid.y,
                    b / kernel.grid.x / kernel.grid.y};
        run_block();
    }
    running = nullptr;
}

void emulation_set_order(uint64_t seed)
{
    order_seed = seed;
}

uint64_t emulation_kernels(void)
{
    return kernels_run;
}
