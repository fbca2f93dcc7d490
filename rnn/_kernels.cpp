// The one binding module: every compiled pipeline as a Python callable.
//
// A call checks each argument against the pipeline's own metadata, hands NumPy's memory over with the axes reversed
// (NumPy's last axis is Halide's dimension 0), releases the GIL, and turns Halide's error text into an exception.
// Calls are counted, so that the team of threads is only ever stopped while none is in flight: neither stopping it under
// a running call nor forking with live workers is safe.

#include <HalideRuntime.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "_team.h"
#include "kernels.h"  // declares every pipeline, and KERNELS(name), written by CMake

namespace nb = nanobind;

namespace {

// ---- calls in flight

std::mutex gate;
std::condition_variable gate_changed;
int in_flight = 0;
bool closed = false;
int threads = 1;

class InFlight {
public:
    InFlight() {
        std::unique_lock<std::mutex> lock(gate);
        gate_changed.wait(lock, [] { return !closed; });
        in_flight++;
        threads_at_start = threads;
    }
    ~InFlight() {
        std::unique_lock<std::mutex> lock(gate);
        if (--in_flight == 0) {
            gate_changed.notify_all();
        }
    }
    int threads_at_start;
};

// Waits until no call is in flight and keeps new ones out; `gate` stays locked.
void close_gate() {
    std::unique_lock<std::mutex> lock(gate);
    gate_changed.wait(lock, [] { return !closed; });
    closed = true;
    gate_changed.wait(lock, [] { return in_flight == 0; });
    lock.release();
}

void open_gate() {
    closed = false;
    gate.unlock();
    gate_changed.notify_all();
}

Team &team = *new Team;  // for as long as the process lasts: workers may sleep when it ends

// A fork copies no threads: they end before it, and start again with the next call on either side.
void before_fork() {
    close_gate();
    team.stop();
}

void set_num_threads(int count) {
    if (count < 1) {
        throw nb::value_error(("threads: expected at least 1, got " + std::to_string(count)).c_str());
    }
    nb::gil_scoped_release release;
    close_gate();
    if (count != threads) {
        team.stop();
        threads = count;
    }
    open_gate();
}

int get_num_threads() {
    std::lock_guard<std::mutex> lock(gate);
    return threads;
}

// What a call's user context points to: where Halide's error text goes (workers may report at the same time), and how
// many threads it may use.
struct Report {
    std::mutex lock;
    std::string text;
    int threads = 1;
};

// Parallel loops of kernels. One task, or one thread, wakes nobody up.
int par_for(void *context, halide_task_t task, int first, int count, uint8_t *closure) {
    const auto *report = static_cast<Report *>(context);
    return team.run(report ? report->threads : 1, context, task, first, count, closure);
}

// ---- memory
//
// A training step wants the same large arrays as the one before, and memory that is new costs a page fault each 4 KiB:
// 10 of 40 ms for 512 steps, 512 lanes and 16 units. So large blocks are kept and given out again, to the kernels'
// scratch arrays and to NumPy arrays alike. (Not huge pages: their memory is contiguous, and rows 4 KiB apart then share
// sets of the L2 cache. 1024 wide, 64 lanes: a forward pass of 112 ms instead of 82.)

constexpr size_t header = 128;              // bytes before a block that hold its size; Halide wants this alignment
constexpr size_t smallest_kept = 1 << 12;   // below it threads would wait for each other: 1024 wide, 5 rows, 11.4 for 6.4 ms
constexpr size_t most_kept = size_t{1} << 29;  // bytes in all blocks that wait to be used again; the oldest go first

using Blocks = std::list<void *>;

std::mutex blocks_lock;
Blocks unused;  // in the order in which they came back
std::multimap<size_t, Blocks::iterator> by_size;  // those of one size in that order too
size_t kept = 0;

size_t size_of(const void *block) { return *static_cast<const size_t *>(block); }

// Takes an unused block out of the books.
void *remove(std::multimap<size_t, Blocks::iterator>::iterator found) {
    void *block = *found->second;
    kept -= found->first;
    unused.erase(found->second);
    by_size.erase(found);
    return block;
}

void *take(size_t bytes) {
    size_t size = bytes + header;
    void *block = nullptr;
    if (size >= smallest_kept) {
        std::lock_guard<std::mutex> lock(blocks_lock);
        auto found = by_size.lower_bound(size);
        if (found != by_size.end() && found->first <= size + size / 4) {
            block = remove(found);
        }
    }
    if (!block) {
        if (posix_memalign(&block, header, size) != 0) {
            return nullptr;
        }
        *static_cast<size_t *>(block) = size;
    }
    return static_cast<char *>(block) + header;
}

void give_back(void *memory) {
    if (!memory) {
        return;
    }
    void *block = static_cast<char *>(memory) - header;
    const size_t size = size_of(block);
    if (size < smallest_kept || size > most_kept) {
        std::free(block);
        return;
    }
    std::lock_guard<std::mutex> lock(blocks_lock);
    while (kept + size > most_kept) {  // what other shapes left behind goes first
        std::free(remove(by_size.lower_bound(size_of(unused.front()))));
    }
    unused.push_back(block);
    by_size.emplace(size, std::prev(unused.end()));
    kept += size;
}

constexpr size_t smallest_array = 1 << 17;  // bytes, below which malloc keeps memory by itself

// An array that is not initialised, of `least` bytes and more in such memory, which begins where a line of the cache does.
// Through NumPy's own interface: nanobind's took 0.4 us more, and a function in Python around this one 0.5, of which a
// small training step wants a dozen.
nb::object make_array(nb::handle shape, nb::handle dtype, size_t least) {
    PyArray_Descr *type = nullptr;
    if (!PyArray_DescrConverter(dtype.ptr(), &type)) {
        throw nb::python_error();
    }
    const nb::object held_type = nb::steal(reinterpret_cast<PyObject *>(type));
    if (PyDataType_REFCHK(type)) {
        throw nb::type_error("dtype: expected that of numbers");
    }
    PyArray_Dims extents{nullptr, 0};
    if (!PyArray_IntpConverter(shape.ptr(), &extents)) {
        throw nb::python_error();
    }
    const std::vector<npy_intp> axes(extents.ptr, extents.ptr + extents.len);
    PyDimMem_FREE(extents.ptr);
    size_t bytes = PyDataType_ELSIZE(type);
    for (npy_intp extent : axes) {
        if (extent < 0 || __builtin_mul_overflow(bytes, size_t(extent), &bytes) || bytes > PTRDIFF_MAX - header) {
            throw nb::value_error("shape: expected extents of an array that can be");
        }
    }
    nb::object held;
    void *memory = nullptr;
    if (bytes >= least) {
        memory = take(bytes);
        if (!memory) {
            throw std::bad_alloc();
        }
        held = nb::steal(PyCapsule_New(
            memory, nullptr, [](PyObject *owner) { give_back(PyCapsule_GetPointer(owner, nullptr)); }));
        if (!held.is_valid()) {
            give_back(memory);
            throw nb::python_error();
        }
    }
    Py_INCREF(type);  // which the next call takes
    const nb::object made = nb::steal(PyArray_NewFromDescr(&PyArray_Type, type, int(axes.size()), axes.data(), nullptr,
                                                           memory, memory ? NPY_ARRAY_CARRAY : 0, nullptr));
    if (!made.is_valid() || (memory && PyArray_SetBaseObject(reinterpret_cast<PyArrayObject *>(made.ptr()),
                                                             held.release().ptr()) < 0)) {
        throw nb::python_error();
    }
    return made;
}

// ---- instruction sets

struct InstructionSet {
    const char *name;
    std::vector<halide_target_feature_t> features;
    bool (*usable)();
};

// __builtin_cpu_supports asks the operating system too (XCR0), which Halide 21 does not.
const InstructionSet instruction_sets[] = {
    {"avx512",
     {halide_target_feature_avx512, halide_target_feature_avx512_skylake},
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512cd");
     }},
    {"avx2",
     {halide_target_feature_avx, halide_target_feature_avx2, halide_target_feature_f16c, halide_target_feature_fma},
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
};

size_t widest = std::size(instruction_sets);  // index of the widest set in use; past the end: SSE4.1

int can_use(int count, const uint64_t *features) {
    for (size_t i = 0; i < widest; i++) {
        for (halide_target_feature_t feature : instruction_sets[i].features) {
            if (feature / 64 < count && features[feature / 64] >> (feature % 64) & 1) {
                return 0;
            }
        }
    }
    return halide_default_can_use_target_features(count, features);
}

std::string instruction_set() {
    return widest < std::size(instruction_sets) ? instruction_sets[widest].name : "sse41";
}

// Whether the kernels "*_bf16" may run: all that their target names (CMakeLists.txt), which has no place among the sets
// above, since Halide's runtime does not know it.
bool has_bf16() {
    return widest == 0 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512ifma") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vpopcntdq");
}

// Whether those take longer than float32's. Intel's vdpbf16ps, of 32 products, is taken up every other cycle, where two
// multiply-adds of 16 are in each (Sapphire Rapids, in 10^9 a second: 1.9 and 7.6). Passes with 100 to 1024 units took 1.3 to
// 1.8 times as long as in float32. What is fast there is AMX.
bool has_slow_bf16() { return __builtin_cpu_is("intel"); }

// RNN_INSTRUCTION_SET caps what is used; Halide caches the choice at each pipeline's first call, so it is read once.
void choose_instruction_set() {
    const char *wanted = std::getenv("RNN_INSTRUCTION_SET");
    bool allowed = !wanted || !*wanted;
    for (widest = 0; widest < std::size(instruction_sets); widest++) {
        allowed = allowed || std::strcmp(wanted, instruction_sets[widest].name) == 0;
        if (allowed && instruction_sets[widest].usable()) {
            break;
        }
    }
    if (!allowed && std::strcmp(wanted, "sse41") != 0) {
        throw nb::value_error(
            ("RNN_INSTRUCTION_SET: expected avx512, avx2 or sse41, got '" + std::string(wanted) + "'").c_str());
    }
    halide_set_custom_can_use_target_features(can_use);
}

// ---- arguments

constexpr int max_dimensions = 5;

[[noreturn]] void fail(PyObject *type, const std::string &message) {
    PyErr_SetString(type, message.c_str());
    throw nb::python_error();
}

std::string type_name(halide_type_t type) {
    if (type.code == halide_type_bfloat) {
        return "bfloat16 (as uint16)";  // NumPy has none
    }
    const char *kind = type.code == halide_type_float ? "float" : type.code == halide_type_uint ? "uint" : "int";
    return kind + std::to_string(type.bits);
}

// NumPy's number of a type.
int type_number(halide_type_t type) {
    if (type.code == halide_type_float) {
        return type.bits == 32 ? NPY_FLOAT32 : NPY_FLOAT64;
    }
    if (type.code == halide_type_bfloat) {
        return NPY_UINT16;
    }
    return type.code == halide_type_uint ? NPY_UINT8 : NPY_INT32;
}

PyArrayObject *array(nb::handle value) { return reinterpret_cast<PyArrayObject *>(value.ptr()); }

// Whether it is an array of this type of numbers, in native byte order, and in C order.
bool is_array(nb::handle value, int type) {
    return PyArray_CheckExact(value.ptr()) && PyArray_TYPE(array(value)) == type && PyArray_ISCARRAY_RO(array(value));
}

bool is_array(nb::handle value, Py_ssize_t axes, int type) {
    return is_array(value, type) && PyArray_NDIM(array(value)) == axes;
}

// Whether it is an array of this dtype and shape, where None is any extent, in C order and small enough for kernels. In
// Python that took 4 us, for an array of three axes, and a layer's five weights 2.5.
bool fits(nb::handle value, nb::handle shape, nb::handle dtype) {
    const auto *type = reinterpret_cast<PyArray_Descr *>(dtype.ptr());
    if (!PyTuple_CheckExact(shape.ptr()) || !PyArray_DescrCheck(dtype.ptr()) || !PyArray_ISNBO(type->byteorder)) {
        return false;
    }
    const Py_ssize_t axes = PyTuple_GET_SIZE(shape.ptr());
    bool same = is_array(value, axes, type->type_num) && PyArray_SIZE(array(value)) <= INT_MAX;
    for (Py_ssize_t axis = 0; same && axis < axes; axis++) {
        const npy_intp extent = PyArray_DIM(array(value), int(axis));
        PyObject *expected = PyTuple_GET_ITEM(shape.ptr(), axis);
        same = extent <= INT_MAX && (expected == Py_None || extent == PyLong_AsSsize_t(expected));
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return false;
    }
    return same;
}

// The arrays of a dict as a new one, in the order of `shapes`, name -> shape, if they are all that is in there and fit;
// else None.
nb::object usual(nb::dict arrays, nb::dict shapes, nb::handle dtype) {
    if (arrays.size() != shapes.size()) {
        return nb::none();
    }
    nb::dict found;
    for (auto [name, shape] : shapes) {
        const nb::object one = nb::borrow(PyDict_GetItemWithError(arrays.ptr(), name.ptr()));
        if (!one.is_valid() || !fits(one, shape, dtype)) {
            PyErr_Clear();
            return nb::none();
        }
        found[name] = one;
    }
    return found;
}

// Whether an output may have the stride 0 along time, so that each step writes over the last one's: an element of a
// tuple, as steps in bfloat16 put out.
bool rolls(const char *name) { return std::strchr(name, '.') != nullptr; }

// Whether an input is meant to be the memory of an output (halide_gen/bfloat16.py).
bool is_read_back(const char *name) { return std::strcmp(name, "fed_back") == 0 || std::strcmp(name, "states_back") == 0; }

// One array as Halide sees it. The caller holds it. (Python's buffers, which any object may offer, took twice as long: a
// training step 16 wide looks at some 60 arrays.)
class Argument {
public:
    Argument() = default;
    Argument(const Argument &) = delete;

    void set(nb::handle given, const halide_filter_argument_t &expected) {
        name = expected.name;
        output = expected.kind == halide_argument_kind_output_buffer;
        if (!PyArray_Check(given.ptr()) || (output && !PyArray_ISWRITEABLE(array(given)))) {
            fail(PyExc_TypeError, text() + ": expected " + (output ? "a writable" : "an") + " array of " +
                                      type_name(expected.type) + ", got " + Py_TYPE(given.ptr())->tp_name +
                                      (PyArray_Check(given.ptr()) ? " that is read-only" : ""));
        }
        fill(array(given), expected);
    }

    // An array in C order that isn't empty, whatever its axes, as one of one axis; false for any other, or another type.
    bool set_flat(nb::handle given, const halide_filter_argument_t &expected) {
        if (!is_array(given, type_number(expected.type)) || PyArray_SIZE(array(given)) > INT_MAX ||
            PyArray_SIZE(array(given)) == 0) {
            return false;
        }
        const int extent = static_cast<int>(PyArray_SIZE(array(given)));
        dimensions[0] = halide_dimension_t(0, extent, 1);
        describe(array(given), expected, 1);
        end = begin + extent * expected.type.bytes();
        return true;
    }

    size_t bytes() const { return end - begin; }
    bool overlaps(const Argument &other) const { return begin < other.end && other.begin < end && !beside(other); }

    std::string text() const { return name; }

    const char *name = nullptr;
    bool output = false;
    halide_buffer_t buffer{};

private:
    // Whether the two are columns of one array: all strides are multiples of its row, where each has a place of its own.
    bool beside(const Argument &other) const {
        int64_t row = 0;
        for (const Argument *one : {this, &other}) {
            for (int i = 1; i < one->buffer.dimensions; i++) {
                if (one->dimensions[i].extent > 1) {
                    row = std::gcd(row, int64_t{one->dimensions[i].stride} * one->buffer.type.bytes());
                }
            }
        }
        if (row == 0) {
            return false;
        }
        const int64_t offset = ((other.begin - begin) % row + row) % row;
        return offset >= columns() && offset + other.columns() <= row;
    }
    int64_t columns() const { return int64_t{dimensions[0].extent} * buffer.type.bytes(); }

    void fill(PyArrayObject *given, const halide_filter_argument_t &expected) {
        if (PyArray_TYPE(given) != type_number(expected.type) || !PyArray_ISNOTSWAPPED(given)) {
            const auto type = nb::borrow(reinterpret_cast<PyObject *>(PyArray_DESCR(given)));
            fail(PyExc_TypeError, text() + ": expected " + type_name(expected.type) +
                                      " in native byte order, got dtype " + nb::str(type).c_str());
        }
        const int axes = PyArray_NDIM(given);
        if (axes != expected.dimensions) {
            fail(PyExc_ValueError, text() + ": expected " + std::to_string(expected.dimensions) + " axes, got " +
                                       std::to_string(axes));
        }
        if (!PyArray_ISALIGNED(given)) {
            fail(PyExc_ValueError, text() + ": expected aligned memory");
        }
        const int64_t size = expected.type.bytes();
        int64_t elements = 1, last = 0;
        for (int i = 0; i < axes; i++) {
            const int axis = axes - 1 - i;
            const int64_t extent = PyArray_DIM(given, axis), bytes = PyArray_STRIDE(given, axis);
            int64_t stride = bytes / size;
            if (extent <= 1 || PyArray_SIZE(given) == 0) {
                stride = i == 0 ? 1 : elements;  // never stepped along, and free in NumPy
            } else if (bytes < 0 || bytes % size != 0) {
                fail(PyExc_ValueError, text() + ": expected strides of whole elements and not negative, got " +
                                           std::to_string(bytes) + " bytes on axis " + std::to_string(axis));
            } else if (output && stride < elements && !(stride == 0 && axis == 0 && rolls(name))) {
                fail(PyExc_ValueError, text() + ": expected an output in C order whose elements do not overlap");
            }
            elements *= extent;
            last += extent ? (extent - 1) * stride : 0;
            if (extent > INT_MAX || stride > INT_MAX || last > INT_MAX || elements > INT_MAX) {
                fail(PyExc_OverflowError, text() + ": expected fewer than 2^31 elements");
            }
            dimensions[i] = halide_dimension_t(0, static_cast<int>(extent), static_cast<int>(stride));
        }
        if (axes && elements && dimensions[0].stride != 1) {
            fail(PyExc_ValueError, text() + ": expected a contiguous last axis");
        }
        describe(given, expected, axes);
        end = begin + (elements ? (last + 1) * size : 0);
    }

    void describe(PyArrayObject *given, const halide_filter_argument_t &expected, int axes) {
        static uint64_t nothing;  // a null pointer would ask Halide for sizes instead of results
        name = expected.name;
        buffer.host = static_cast<uint8_t *>(PyArray_DATA(given) ? PyArray_DATA(given) : &nothing);
        buffer.type = expected.type;
        buffer.dimensions = axes;
        buffer.dim = dimensions;
        begin = buffer.host;
    }

    halide_dimension_t dimensions[max_dimensions]{};
    const uint8_t *begin = nullptr, *end = nullptr;
};

// ---- kernels

struct Kernel {
    std::string name;
    int (*call)(void **);
    const halide_filter_metadata_t *metadata;
};

void report_error(void *context, const char *text) {
    auto *report = static_cast<Report *>(context);
    if (report) {
        std::lock_guard<std::mutex> lock(report->lock);
        if (report->text.empty()) {
            report->text = text;
        }
    }
}

// The kernels of single steps check nothing: that took 0.14 of 0.29 us, LSTM, 8 units. Stepper does it for them.
bool checks_itself(const Kernel &kernel) { return kernel.name.rfind("step_", 0) != 0; }

// Bytes in a call's arrays from which on it uses other threads, which may be asleep, or kept from running. Of many rows
// each thread takes its own, forward and back: half of that will do. 2 threads against 1:
//   Sapphire Rapids, whose other processor gets what this one wrote slowly, a call in us: LSTM, 32 wide, 16 rows, 270 KiB
//   49 -> 77; GRU, 32 wide, 230 KiB 33 -> 67; RNN, 128 wide, 16 rows, 260 KiB 64 -> 45, 420 KiB 143 -> 86; gradients, 64
//   wide, 370 KiB 25 -> 31, 128 wide, 780 KiB 90 -> 80.
//   Zen 4: training 16 wide, 16 rows, 100 to 370 KiB, 0.191 -> 0.163 ms; LSTM, 32 wide, 70 KiB, forward 76 -> 55 us.
// A single row, whose steps are one thread's, and which then finds half of what the gradients left in another core's
// cache: training 64 wide, 200 to 400 KiB, 0.20 -> 0.25 ms (Zen 4); above 512 KiB faster.
std::atomic<size_t> worth_sharing{1 << 19};
constexpr int many_rows = 16;  // two blocks at the least

size_t least_to_share(int rows) { return worth_sharing / (rows < many_rows ? 1 : 2); }

// Raises what a call answered.
void check(const Kernel &kernel, int code, const Report &report) {
    if (code != 0) {
        PyObject *type = code == halide_error_code_out_of_memory ? PyExc_MemoryError : PyExc_ValueError;
        fail(type, kernel.name + ": " + report.text);
    }
}

void run(const Kernel &kernel, nb::args given) {
    if (!checks_itself(kernel)) {
        fail(PyExc_TypeError, kernel.name + ": expected to be called by a Stepper");
    }
    const halide_filter_metadata_t &metadata = *kernel.metadata;
    std::vector<Argument> arrays(metadata.num_arguments);
    std::vector<void *> slots(metadata.num_arguments);
    Report report;
    void *context = &report;
    std::vector<int> numbers(metadata.num_arguments);
    size_t next = 0, bytes = 0, held = 0;
    int rows = 1;
    for (int i = 0; i < metadata.num_arguments; i++) {
        const halide_filter_argument_t &expected = metadata.arguments[i];
        const bool scalar = expected.kind == halide_argument_kind_input_scalar;
        if (scalar && expected.type.code == halide_type_handle) {
            slots[i] = &context;
            continue;
        }
        if (scalar && std::strcmp(expected.name, "threads") == 0) {
            slots[i] = &report.threads;
            continue;
        }
        if (next == given.size()) {
            fail(PyExc_TypeError, kernel.name + ": expected " + expected.name + ", got too few arguments");
        }
        if (scalar) {
            if (!nb::try_cast(given[next++], numbers[i])) {
                fail(PyExc_TypeError, kernel.name + ": " + expected.name + ": expected a 32-bit integer");
            }
            slots[i] = &numbers[i];
            continue;
        }
        Argument &one = arrays[held++];
        one.set(given[next++], expected);
        slots[i] = &one.buffer;
        bytes += one.bytes();
        if (one.buffer.dimensions == 3) {  // (T, N, ...)
            rows = std::max(rows, one.buffer.dim[1].extent);
        }
    }
    if (next != given.size()) {
        fail(PyExc_TypeError, kernel.name + ": expected " + std::to_string(next) + " arguments, got " +
                                  std::to_string(given.size()));
    }
    for (size_t i = 0; i < held; i++) {
        for (size_t j = 0; j < held && arrays[i].output; j++) {
            if (i != j && arrays[i].overlaps(arrays[j]) && !is_read_back(arrays[j].name)) {
                fail(PyExc_ValueError, arrays[i].text() + ": expected memory of its own, got memory shared with " +
                                           arrays[j].name);
            }
        }
    }
    int code;
    {
        nb::gil_scoped_release release;
        InFlight call;
        report.threads = bytes < least_to_share(rows) ? 1 : call.threads_at_start;
        code = kernel.call(slots.data());
    }
    check(kernel, code, report);
}

// What a kernel of elements (first its settings, then inputs, then outputs, one axis each) makes of each array of `given`,
// a list for each input, whose arrays need but be of one size: a list for each output, of arrays like those in the first
// list. None where they are not all in C order, of the kernel's type, and not empty. (A step of SGD over the six weights of
// an RNN with 16 inputs, 64 units and 16 outputs: 11.5 -> 9.4 us, where NumPy or a call of a kernel took one at a time.)
nb::object each(const Kernel &kernel, nb::handle settings, nb::args given) {
    const halide_filter_metadata_t &metadata = *kernel.metadata;
    constexpr size_t skipped = 2;  // the context and the number of threads
    const size_t inputs = given.size();
    size_t wanted = 0, outputs = 0;
    for (size_t i = skipped; i < size_t(metadata.num_arguments); i++) {
        const halide_filter_argument_t &argument = metadata.arguments[i];
        if (!checks_itself(kernel) || argument.kind == halide_argument_kind_input_scalar || argument.dimensions != 1) {
            fail(PyExc_TypeError, kernel.name + ": expected a kernel of arrays of one axis");
        }
        (argument.kind == halide_argument_kind_output_buffer ? outputs : wanted)++;
    }
    if (inputs < 1 || inputs + 1 != wanted) {
        fail(PyExc_TypeError, kernel.name + ": expected a list for each input, got " + std::to_string(inputs));
    }
    std::vector<nb::list> columns;
    for (nb::handle column : given) {
        columns.push_back(nb::list(column));
    }
    const size_t count = columns[0].size();
    columns.resize(inputs + outputs);
    std::vector<Argument> arrays(1 + count * columns.size());
    arrays[0].set(settings, metadata.arguments[skipped]);
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < columns.size(); k++) {
            const halide_filter_argument_t &expected = metadata.arguments[skipped + 1 + k];
            if (k >= inputs) {
                const nb::handle like = columns[0][i];
                const auto shape = nb::steal(PyArray_IntTupleFromIntp(PyArray_NDIM(array(like)), PyArray_DIMS(array(like))));
                const auto type = nb::borrow(reinterpret_cast<PyObject *>(PyArray_DESCR(array(like))));
                columns[k].append(make_array(shape, type, smallest_array));
            } else if (columns[k].size() != count) {
                fail(PyExc_ValueError, kernel.name + ": expected as many arrays for each input");
            }
            if (!arrays[1 + i * columns.size() + k].set_flat(columns[k][i], expected)) {
                return nb::none();
            }
        }
    }
    Report report;
    int code = 0;
    {
        nb::gil_scoped_release release;
        InFlight call;
        void *context = &report;
        std::vector<void *> slots{&context, &report.threads, &arrays[0].buffer};
        slots.resize(metadata.num_arguments);
        for (size_t i = 0; i < count && code == 0; i++) {
            size_t bytes = 0;
            for (size_t k = 0; k < columns.size(); k++) {
                Argument &one = arrays[1 + i * columns.size() + k];
                slots[skipped + 1 + k] = &one.buffer;
                bytes += one.bytes();
            }
            report.threads = bytes < least_to_share(1) ? 1 : call.threads_at_start;
            code = kernel.call(slots.data());
        }
    }
    check(kernel, code, report);
    nb::list made;
    for (size_t k = inputs; k < columns.size(); k++) {
        made.append(columns[k]);
    }
    return made;
}

// A kernel from a shared library that _compiler.py linked. The library has a Halide runtime of its own, which is told to
// use ours: one thread pool, one memory, one error handler.
Kernel load(const std::string &path, const std::string &name) {
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its kernel may be called at any time
    if (!library) {
        fail(PyExc_ImportError, path + ": " + dlerror());
    }
    auto find = [&](const std::string &symbol) {
        void *found = dlsym(library, symbol.c_str());
        if (!found) {
            fail(PyExc_ImportError, path + ": no symbol " + symbol);
        }
        return found;
    };
    auto call = reinterpret_cast<int (*)(void **)>(find(name + "_argv"));
    auto metadata = reinterpret_cast<const halide_filter_metadata_t *(*)()>(find(name + "_metadata"));
    reinterpret_cast<decltype(&halide_set_custom_malloc)>(find("halide_set_custom_malloc"))(
        [](void *, size_t bytes) { return take(bytes); });
    reinterpret_cast<decltype(&halide_set_custom_free)>(find("halide_set_custom_free"))(
        [](void *, void *memory) { give_back(memory); });
    reinterpret_cast<decltype(&halide_set_error_handler)>(find("halide_set_error_handler"))(report_error);
    reinterpret_cast<decltype(&halide_set_custom_parallel_runtime)>(find("halide_set_custom_parallel_runtime"))(
        par_for, halide_default_do_task, halide_default_do_loop_task, halide_default_do_parallel_tasks,
        halide_default_semaphore_init, halide_default_semaphore_try_acquire, halide_default_semaphore_release);
    return Kernel{name, call, metadata()};
}

// ---- single steps
//
// A time step of a small layer takes less time than `run` takes to look at its arguments. Here NumPy's own interface
// does it: numpy.empty alone added 0.3 us to an LSTM's 0.7. Nothing is kept from one call to the next but names and
// shapes: weights may be replaced, changed or resized in between.

const npy_intp *shape_of(nb::handle value) { return PyArray_DIMS(array(value)); }
char *data_of(nb::handle value) { return PyArray_BYTES(array(value)); }

class Stepper {
public:
    // (name, shape), in the order of the kernel's arguments; a weight that is called None is zeros. Names had best be
    // the very keys of the dict of weights: a dict is faster with those.
    using Weight = std::pair<nb::object, std::vector<Py_ssize_t>>;

    Stepper(const Kernel &kernel, const std::vector<std::vector<Weight>> &weights, int inputs, int hidden, int outputs,
            bool readout, Py_ssize_t most_rows)
        : kernel(kernel), inputs(inputs), hidden(hidden), outputs(outputs), readout(readout), most_rows(most_rows) {
        for (int i = 0; i < kernel.metadata->num_arguments; i++) {
            states += std::strncmp(kernel.metadata->arguments[i].name, "before_", 7) == 0;
        }
        Py_ssize_t most_zeros = hidden;
        for (const std::vector<Weight> &layer : weights) {
            slots.emplace_back();
            for (const auto &[name, shape] : layer) {
                named += !name.is_none();
                slots.back().push_back({name, shape});
                const Py_ssize_t numbers = shape[0] * (shape.size() == 2 ? shape[1] : 1);
                (name.is_none() ? most_zeros : multiplications) += numbers;
            }
            if (kernel.metadata->num_arguments != int(2 + 1 + 2 * states + layer.size() + 1)) {
                fail(PyExc_ValueError, kernel.name + ": expected other weights");
            }
        }
        zeros.resize(most_zeros);
    }

    // (output, state) after a step; None where `Layer.step` has to look closer.
    nb::object step(nb::handle x, nb::handle state, nb::handle weights) const {
        const Py_ssize_t layers = slots.size();
        const bool several = layers > 1;
        if (!is_array(x, 2, NPY_FLOAT32) || shape_of(x)[1] != inputs || !PyDict_CheckExact(weights.ptr()) ||
            PyDict_GET_SIZE(weights.ptr()) != named) {
            return nb::none();
        }
        const Py_ssize_t rows = shape_of(x)[0];
        if (rows < 1 || rows > most_rows || rows * std::max({inputs, hidden, outputs}) > INT_MAX) {
            return nb::none();
        }

        // ---- what goes out; first, since Python may run a finalizer here, and that may drop what comes in
        const Py_ssize_t shape[] = {layers, rows, hidden}, shape_out[] = {rows, readout ? outputs : hidden};
        const nb::object output = make(2, shape_out);
        const nb::object after = nb::steal(PyTuple_New(states));
        for (int k = 0; k < states; k++) {
            PyTuple_SET_ITEM(after.ptr(), k, make(2 + several, shape + !several).release().ptr());
        }

        // ---- what comes in: x, the states, all weights
        std::vector<nb::handle> given{x};
        given.reserve(1 + states + layers * slots[0].size());
        for (int k = 0; k < states; k++) {
            nb::handle one = state;
            if (PyTuple_Check(state.ptr()) || PyList_Check(state.ptr())) {
                if (PySequence_Fast_GET_SIZE(state.ptr()) != states) {
                    return nb::none();
                }
                one = PySequence_Fast_GET_ITEM(state.ptr(), k);
            } else if (states > 1 && !state.is_none()) {
                return nb::none();
            }
            if (!state.is_none() &&
                (!is_array(one, 2 + several, NPY_FLOAT32) || !std::equal(shape + !several, shape + 3, shape_of(one)))) {
                return nb::none();
            }
            given.push_back(one);
        }
        for (const std::vector<Slot> &layer : slots) {
            for (const Slot &slot : layer) {
                nb::handle one;
                if (!slot.name.is_none()) {
                    one = PyDict_GetItemWithError(weights.ptr(), slot.name.ptr());
                    if (!one.is_valid() || !is_array(one, slot.shape.size(), NPY_FLOAT32) ||
                        !std::equal(slot.shape.begin(), slot.shape.end(), shape_of(one))) {
                        PyErr_Clear();
                        return nb::none();
                    }
                }
                given.push_back(one);
            }
        }

        if (rows * multiplications < worth_a_release) {
            compute(given, state.is_none(), output, after, rows);
        } else {
            std::vector<nb::object> held;  // whatever other threads do to the layer meanwhile
            for (nb::handle one : given) {
                held.push_back(nb::borrow(one));
            }
            nb::gil_scoped_release release;
            compute(given, state.is_none(), output, after, rows);
        }
        return nb::make_tuple(output, states == 1 ? nb::borrow(PyTuple_GET_ITEM(after.ptr(), 0)) : after);
    }

private:
    struct Slot {
        nb::object name;
        std::vector<Py_ssize_t> shape;
    };

    // A buffer of one or two axes.
    struct View {
        halide_dimension_t dimensions[2];
        halide_buffer_t buffer{};

        void set(const void *host, int axes, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t stride) {
            dimensions[0] = halide_dimension_t(0, int(columns), 1);
            dimensions[1] = halide_dimension_t(0, int(rows), int(stride));
            buffer.host = static_cast<uint8_t *>(const_cast<void *>(host));
            buffer.type = halide_type_of<float>();
            buffer.dimensions = axes;
            buffer.dim = dimensions;
        }
    };

    static nb::object make(int axes, const npy_intp *shape) {
        PyObject *made = PyArray_SimpleNew(axes, shape, NPY_FLOAT32);
        if (!made) {
            throw nb::python_error();
        }
        return nb::steal(made);
    }

    // It takes no memory that Halide allots and no thread of the pool: so it need not count as a call in flight.
    void compute(const std::vector<nb::handle> &given, bool from_zeros, const nb::object &output, const nb::object &after,
                 Py_ssize_t rows) const {
        const size_t count = slots[0].size();
        static thread_local std::vector<View> views;  // kept, as allocating them took 0.1 us
        static thread_local std::vector<void *> arguments;
        views.resize(1 + 2 * states + count + 1);
        arguments.resize(2 + views.size());
        void *context = nullptr;
        int threads = 1;
        arguments[0] = &context;
        arguments[1] = &threads;
        for (size_t i = 0; i < views.size(); i++) {
            arguments[2 + i] = &views[i].buffer;
        }
        const char *below = data_of(given[0]);
        char *top = nullptr;
        for (size_t layer = 0; layer < slots.size(); layer++) {
            const size_t offset = layer * rows * hidden * sizeof(float);
            const int width = layer ? hidden : inputs;
            View *view = views.data();
            (view++)->set(below, 2, rows, width, width);
            for (int k = 0; k < states; k++) {
                if (from_zeros) {
                    (view++)->set(zeros.data(), 2, rows, hidden, 0);
                } else {
                    (view++)->set(data_of(given[1 + k]) + offset, 2, rows, hidden, hidden);
                }
            }
            for (size_t i = 0; i < count; i++) {
                const std::vector<Py_ssize_t> &shape = slots[layer][i].shape;
                const nb::handle one = given[1 + states + layer * count + i];
                const void *data = one.is_valid() ? static_cast<const void *>(data_of(one)) : zeros.data();
                if (shape.size() == 2) {
                    (view++)->set(data, 2, shape[0], shape[1], shape[1]);
                } else {
                    (view++)->set(data, 1, 1, shape[0], shape[0]);
                }
            }
            for (int k = 0; k < states; k++) {
                char *made = data_of(PyTuple_GET_ITEM(after.ptr(), k)) + offset;
                top = k ? top : made;
                (view++)->set(made, 2, rows, hidden, hidden);
            }
            const int read = readout && layer + 1 == slots.size() ? outputs : 0;
            view->set(data_of(output), 2, rows, read, read);
            kernel.call(arguments.data());
            below = top;
        }
        if (!readout) {
            std::memcpy(data_of(output), top, rows * hidden * sizeof(float));
        }
    }

    // Multiplications from which on other threads had better run: some 30 us.
    static constexpr Py_ssize_t worth_a_release = 1 << 19;

    Kernel kernel;
    int inputs, hidden, outputs;
    bool readout;
    Py_ssize_t most_rows;
    int states = 0;
    Py_ssize_t named = 0, multiplications = 0;
    std::vector<std::vector<Slot>> slots;
    std::vector<float> zeros;
};

}  // namespace

NB_MODULE(_kernels, m) {
    m.doc() = "The compiled Halide pipelines of halide-rnn.";
    if (PyArray_ImportNumPyAPI() < 0) {
        throw nb::python_error();
    }
    choose_instruction_set();
    halide_set_error_handler(report_error);
    halide_set_custom_malloc([](void *, size_t bytes) { return take(bytes); });
    halide_set_custom_free([](void *, void *memory) { give_back(memory); });
    halide_set_custom_do_par_for(par_for);
    pthread_atfork(before_fork, open_gate, open_gate);

    nb::class_<Kernel>(m, "Kernel", "A compiled pipeline: call it with its inputs, then its outputs.")
        .def_ro("name", &Kernel::name)
        .def_prop_ro("arguments",
                     [](const Kernel &kernel) {
                         std::vector<std::string> names;
                         for (int i = 0; i < kernel.metadata->num_arguments; i++) {
                             const halide_filter_argument_t &argument = kernel.metadata->arguments[i];
                             if (argument.type.code != halide_type_handle && std::strcmp(argument.name, "threads") != 0) {
                                 names.emplace_back(argument.name);
                             }
                         }
                         return names;
                     })
        .def("__call__", &run)
        .def("each", &each, "What it makes of each of several arrays, in lists: settings, a list for each input; or None.");

    nb::class_<Stepper>(m, "Stepper", "Makes single time steps of layers over each other.")
        .def(nb::init<const Kernel &, const std::vector<std::vector<Stepper::Weight>> &, int, int, int, bool, Py_ssize_t>(),
             nb::arg("kernel"), nb::arg("weights"), nb::arg("inputs"), nb::arg("hidden"), nb::arg("outputs"),
             nb::arg("readout"), nb::arg("most_rows"))
        .def("step", &Stepper::step, nb::arg().none(), nb::arg().none(), nb::arg().none(),
             "(output, state) from x, the state before and the weights; None where they need a closer look.");

    nb::dict kernels;
#define KERNEL(name) kernels[#name] = Kernel{#name, name##_argv, name##_metadata()};
    KERNELS(KERNEL)
#undef KERNEL
    m.attr("kernels") = kernels;
    m.def("load", &load, nb::arg("path"), nb::arg("name"), "A kernel from a shared library of its own.");
    m.def("set_num_threads", &set_num_threads, nb::arg("threads"));
    m.def("get_num_threads", &get_num_threads);
    m.def("worth_sharing", &least_to_share, nb::arg("rows") = 1,
          "Bytes in a call's arrays from which on it uses more than one thread, with so many rows.");
    m.def("set_worth_sharing", [](size_t bytes) { worth_sharing = bytes; }, nb::arg("bytes"), "For few rows.");
    m.def("empty", [](nb::handle shape, nb::handle dtype) { return make_array(shape, dtype, smallest_array); },
          nb::arg("shape"), nb::arg("dtype"), "As numpy.empty; large ones in memory that is used again.");
    m.def("aligned", [](nb::handle shape, nb::handle dtype) { return make_array(shape, dtype, 0); }, nb::arg("shape"),
          nb::arg("dtype"), "The same, from the start of a cache line on.");
    m.attr("smallest_array") = smallest_array;
    m.def("fits", &fits, nb::arg("value").none(), nb::arg("shape"), nb::arg("dtype"),
          "Whether it is an array of this dtype and shape, None for any extent, in C order and of less than 2^31 elements.");
    m.def("usual", &usual, nb::arg("arrays"), nb::arg("shapes"), nb::arg("dtype"),
          "Arrays by name, in the order of `shapes`, if all of these are there, as they should be, and in C order; or None.");
    m.def("has_bf16", &has_bf16, "Whether the kernels in bfloat16 may run: AVX512_BF16, unless RNN_INSTRUCTION_SET forbids.");
    m.def("has_slow_bf16", &has_slow_bf16, "Whether those take longer than the kernels in float32.");
    m.def("instruction_set", &instruction_set, "The widest instruction set in use: avx512, avx2 or sse41.");
}
