// Fibers for the emulated machine, and the kernels on top of it. See emulator.h.
#define MILLPOND_EMULATED
#include "../kernels/linear.cu"
#include "../kernels/matmul.cu"
#include "../kernels/model.cu"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <vector>

thread_local Dimensions threadIdx, blockIdx, blockDim;
thread_local unsigned char* emulated_shared;

namespace {

constexpr size_t STACK_BYTES = 128 * 1024;

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

// A barrier over some threads: those that wait for generation g are released when it has passed.
struct Barrier {
    int threads = 0, arrived = 0;
    unsigned generation = 0;

    void release_if_full() {
        if (threads > 0 && arrived == threads) {
            arrived = 0;
            generation++;
        }
    }
};

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    bool started = false, ended = false;
    const Barrier* waits_for = nullptr;
    unsigned waits_generation = 0;
    unsigned exchanges = 0;
    std::vector<Copy> copies;
};

struct Block {
    void (*kernel)(const void*);
    const void* args;
    std::vector<Fiber> fibers;
    Barrier all;
    std::vector<Barrier> warps;
    // Two buffers: an exchange may begin while slow lanes still read the one before.
    std::vector<float> exchange[2];
    Copy bulk{};
    int current = 0;
    ucontext_t caller;
    jmp_buf scheduler;
};

thread_local Block* block;

Fiber& self() { return block->fibers[block->current]; }
Barrier& own_warp() { return block->warps[block->current / 32]; }

void arrive_and_wait(Barrier& barrier) {
    Fiber& fiber = self();
    fiber.waits_for = &barrier;
    fiber.waits_generation = barrier.generation;
    barrier.arrived++;
    barrier.release_if_full();
    if (_setjmp(fiber.resume) == 0) _longjmp(block->scheduler, 1);
}

void fiber_main() {
    block->kernel(block->args);
    self().ended = true;
    // Threads that have ended no longer hold up barriers.
    for (Barrier* barrier : {&block->all, &own_warp()}) {
        barrier->threads--;
        barrier->release_if_full();
    }
    _longjmp(block->scheduler, 1);
}

bool runnable(const Fiber& fiber) {
    return !fiber.ended && (!fiber.waits_for || fiber.waits_for->generation != fiber.waits_generation);
}

void resume(int thread) {
    Fiber& fiber = block->fibers[thread];
    block->current = thread;
    threadIdx = {thread, 0, 0};
    if (_setjmp(block->scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    swapcontext(&block->caller, &fiber.start);
}

// Whether every thread reached its end.
bool run_block() {
    for (;;) {
        bool progress = false, live = false;
        for (int thread = 0; thread < static_cast<int>(block->fibers.size()); thread++) {
            if (runnable(block->fibers[thread])) {
                resume(thread);
                progress = true;
            }
            live |= !block->fibers[thread].ended;
        }
        if (!live) return true;
        if (!progress) return false;
    }
}

void prepare_fibers(int threads) {
    block->all = Barrier();
    block->all.threads = threads;
    block->warps.assign((threads + 31) / 32, Barrier());
    for (int thread = 0; thread < threads; thread++) block->warps[thread / 32].threads++;
    for (Fiber& fiber : block->fibers) {
        fiber.started = fiber.ended = false;
        fiber.waits_for = nullptr;
        fiber.exchanges = 0;
        fiber.copies.clear();
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = STACK_BYTES;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, fiber_main, 0);
    }
}

}  // namespace

void __syncthreads() { arrive_and_wait(block->all); }

float emulated_exchange(float value, int lane) {
    std::vector<float>& buffer = block->exchange[self().exchanges++ & 1];
    buffer[block->current] = value;
    arrive_and_wait(own_warp());
    return buffer[(block->current & ~31) | lane];
}

void emulated_copy(void* to, const void* from, size_t bytes) { self().copies.push_back({to, from, bytes}); }

void emulated_copies_finish() {
    for (const Copy& copy : self().copies) memcpy(copy.to, copy.from, copy.bytes);
    self().copies.clear();
}

#ifdef BULK_COPY
void emulated_bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier) {
    *barrier = 0;
    block->bulk = {to, from, bytes};
}

void emulated_bulk_wait(unsigned long long* barrier) {
    if (*barrier == 0) memcpy(block->bulk.to, block->bulk.from, block->bulk.bytes);
    *barrier = 1;
}
#endif

// Runs every block of a grid, one after the other. 0: done; 1: a barrier was not reached by all threads.
extern "C" int millpond_emulate(void (*kernel)(const void*), const void* args, const int* grid, int threads,
                                size_t shared_bytes) {
    Block state;
    state.kernel = kernel;
    state.args = args;
    state.fibers = std::vector<Fiber>(threads);
    for (auto& buffer : state.exchange) buffer.assign(threads + 31, 0.f);
    std::unique_ptr<float4[]> shared(new float4[shared_bytes / sizeof(float4) + 1]);
    emulated_shared = reinterpret_cast<unsigned char*>(shared.get());
    block = &state;
    blockDim = {threads, 1, 1};
    for (int z = 0; z < grid[2]; z++) {
        for (int y = 0; y < grid[1]; y++) {
            for (int x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                memset(emulated_shared, 0xff, shared_bytes);
                prepare_fibers(threads);
                if (!run_block()) return 1;
            }
        }
    }
    return 0;
}
