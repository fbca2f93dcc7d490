// Parallel loops: a team of threads that share out their iterations.
//
// A time step of one row is a loop of its own, of tens of microseconds. In such loops a thread should get the iterations
// it had in the step before, whose weights lie in its core's caches, and the others should be there at once. Halide's own
// pool hands each iteration to whichever thread comes first, under a lock. Here every thread has a share of a loop, the
// same one in each loop of as many iterations, and takes from the others' when its own is done. And where a step's weights
// are more than the cache holds, a thread should begin with those that it came to last: every other loop goes through its
// shares from their ends.

#pragma once

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

class Team {
public:
    using Task = int (*)(void *context, int index, uint8_t *closure);

    // task(context, i, closure) for first <= i < first + count, on the caller and up to size - 1 others. Returns a result
    // that is not 0, if there is one; no iterations start after it. May be called by several threads, and by tasks.
    int run(int size, void *context, Task task, int first, int count, uint8_t *closure) {
        const int slot = size == 1 || count <= 1 ? -1 : take_slot();
        if (count > 1) {
            backward = !backward;
        }
        const bool turned = backward;  // a task may run loops of its own
        if (slot < 0) {
            int code = 0;
            for (int i = 0; i < count && code == 0; i++) {
                code = task(context, first + (turned ? count - 1 - i : i), closure);
            }
            return code;
        }
        start(size - 1);
        Loop &loop = loops[slot];
        loop.task = task;
        loop.context = context;
        loop.closure = closure;
        loop.first = first;
        loop.count = count;
        loop.backward = turned;
        loop.code = 0;
        loop.left = count;
        const int shares = std::min({size, count, most});
        loop.shares = shares;
        for (int i = 0; i < shares; i++) {
            loop.share[i].range.store(loop.begin(i + 1) << 32 | loop.begin(i), std::memory_order_release);
        }
        open |= uint64_t{1} << slot;
        round++;
        round.notify_all();  // no system call if nobody sleeps
        help(loop);
        for (int turns = 0; loop.left.load(std::memory_order_acquire) != 0; turns++) {
            if (turns < patience) {
                _mm_pause();
            } else {
                sched_yield();  // more threads than processors
            }
        }
        const int code = loop.code;
        open &= ~(uint64_t{1} << slot);
        taken &= ~(uint64_t{1} << slot);
        return code;
    }

    // Ends the workers, who start again when they are needed. No loop may be running.
    void stop() {
        std::lock_guard<std::mutex> lock(starting);
        stopping = true;
        round++;
        round.notify_all();
        for (std::thread &worker : workers) {
            worker.join();
        }
        workers.clear();
        started = 0;
        stopping = false;
    }

private:
    static constexpr int most = 64;  // loops at a time, and shares of a loop
    // Turns, some 25 us, that an idle thread looks out for a loop: the next step's comes within less.
    static constexpr int patience = 1 << 10;
    // Turns after those, some 600 us, in which it lets other threads run, before it sleeps: the next call's loop comes
    // within less, and to wake a thread takes 50 us and more. On two cores, plain RNN, 256 wide, 16 rows of 16 steps, an
    // epoch of learning frames: 0.19 -> 0.17 s; LSTM, 256 wide, one row of 200 steps: 2.0 -> 1.8 ms, and with three threads
    // there 3.4 -> 1.7.
    static constexpr int courtesy = 1 << 10;

    struct alignas(64) Share {
        std::atomic<uint64_t> range{0};  // the next iteration, and in the upper half the one past the last
    };

    // A thread that comes late, and finds the slot's next loop here, may as well help with that: whoever takes an iteration
    // sees what was written before the range was, and the loop does not end before that iteration does.
    struct Loop {
        Task task;
        void *context;
        uint8_t *closure;
        int first, count;
        bool backward;
        std::atomic<int> shares{0}, code{0};
        alignas(64) std::atomic<int> left{0};
        Share share[most];

        // Where a share begins, and the one before it ends.
        uint64_t begin(int number) const { return int64_t{count} * number / shares.load(std::memory_order_relaxed); }
    };

    int take_slot() {
        uint64_t now = taken;
        while (~now) {
            const int slot = __builtin_ctzll(~now);
            if (taken.compare_exchange_weak(now, now | uint64_t{1} << slot)) {
                return slot;
            }
        }
        return -1;
    }

    void start(int count) {
        if (started.load(std::memory_order_acquire) >= count) {
            return;
        }
        std::lock_guard<std::mutex> lock(starting);
        try {
            while (static_cast<int>(workers.size()) < count) {
                workers.emplace_back(&Team::work, this, static_cast<int>(workers.size()) + 1);
            }
        } catch (const std::system_error &) {
            // The system has no more threads: those that there are do it all.
        }
        started.store(count, std::memory_order_release);
    }

    // Does what is left to start of a loop, this thread's share first; whether there was anything.
    bool help(Loop &loop) {
        bool helped = false;
        const int shares = loop.shares.load(std::memory_order_relaxed);
        for (int i = 0; i < shares; i++) {
            const int number = (self + i) % shares;
            std::atomic<uint64_t> &range = loop.share[number].range;
            for (uint64_t now = range; static_cast<uint32_t>(now) < now >> 32; now = range) {
                now = range.fetch_add(1);
                auto next = static_cast<uint32_t>(now);
                if (next >= now >> 32) {
                    break;
                }
                helped = true;
                if (loop.backward) {
                    next = static_cast<uint32_t>(loop.begin(number) + loop.begin(number + 1)) - 1 - next;
                }
                if (loop.code.load(std::memory_order_relaxed) == 0) {
                    if (const int code = loop.task(loop.context, loop.first + static_cast<int>(next), loop.closure)) {
                        loop.code = code;
                    }
                }
                loop.left.fetch_sub(1);
            }
        }
        return helped;
    }

    void work(int number) {
        self = number;
        while (true) {
            const uint32_t seen = round;
            if (stopping) {
                return;
            }
            bool helped = false;
            for (uint64_t left = open; left != 0; left &= left - 1) {
                helped |= help(loops[__builtin_ctzll(left)]);
            }
            for (int turns = 0; !helped && round.load(std::memory_order_acquire) == seen; turns++) {
                if (turns < patience) {
                    _mm_pause();
                } else if (turns < patience + courtesy) {
                    sched_yield();
                } else {
                    round.wait(seen);
                }
            }
        }
    }

    inline static thread_local int self = 0;  // workers count from 1
    inline static thread_local bool backward = false;  // which way the last loop went
    Loop loops[most];
    alignas(64) std::atomic<uint64_t> taken{0};
    alignas(64) std::atomic<uint64_t> open{0};   // slots with loops that are running
    alignas(64) std::atomic<uint32_t> round{0};  // counts loops
    std::atomic<bool> stopping{false};
    std::atomic<int> started{0};
    std::mutex starting;
    std::vector<std::thread> workers;
};
