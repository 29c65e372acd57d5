// The kernel of intercept.py again, for the collectives that programs issue all the time: in C++ it costs a
// few microseconds where Python costs 30 to 60 in a program whose data has pushed the interpreter out of the
// processor's caches. Whatever is unusual about a call (no Python frame, an exception in flight, a sparse
// tensor, an interposer, a group not met yet) goes to the Python kernel, which can do all of it.
//
// All state is the Python objects' own, read and written with the GIL held; only the record itself is written
// here, into a mapping of the ledger's file. Between two calls into the interpreter nothing else runs, so the
// record's number and its content are one step, as in Ledger.append. Built by compiled.py.

#include <Python.h>
#include <structmember.h>  // first, as Python asks

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

namespace {

// As ledger.py and entry.py have them; `Kernel` is given their sizes and refuses others.
struct Record {
  uint32_t kind, group, sequence, op, reduce_op, dtype, shape, site, tag, detail;
  int32_t root, peer;
  uint64_t elements, digest;
  double issued, wait_begun, wait_ended, done;
  uint32_t thread, flags;
};
constexpr uint32_t WAITED = 1, NATIVE = 2, POLLED = 16, OFFERED = 32;
// recorder.py's: a chain is the same on all ranks, whichever kernel wrote it.
constexpr uint64_t STEP = 0x9E3779B97F4A7C15;
constexpr size_t MOST_CALLS = 4096, MOST_CODES = 16384;

struct Operator {
  std::string op;
  int number, group, data, reduce_op, async_op, root;  // positions, -1 where it has no such argument
  int output, output_splits, input_splits;             // of an exchange of rows, else -1
  bool sized;                                          // whether elements are compared
};

// An attribute that its class names in __slots__: read and written where it lies, since a look-up by name is
// some cache misses in a program that has data of its own.
class Slot {
 public:
  Slot(const py::handle& type, const char* name) {
    const py::object found = type.attr(name);
    if (Py_TYPE(found.ptr()) != &PyMemberDescr_Type) {
      throw std::runtime_error(std::string("the compiled kernel needs a slot ") + name);
    }
    offset_ = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member->offset;
  }
  uint64_t get(const py::handle& holder) const {
    const uint64_t value = PyLong_AsUnsignedLongLong(*at(holder));
    if (PyErr_Occurred() != nullptr) {
      throw py::error_already_set();
    }
    return value;
  }
  void set(const py::handle& holder, uint64_t value) const {
    PyObject* number = PyLong_FromUnsignedLongLong(value);
    if (number == nullptr) {
      throw py::error_already_set();
    }
    PyObject* before = std::exchange(*at(holder), number);
    Py_XDECREF(before);
  }

 private:
  PyObject** at(const py::handle& holder) const {
    return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(holder.ptr()) + offset_);
  }
  Py_ssize_t offset_;
};

struct Group {  // one that this rank has met
  c10::weak_intrusive_ptr<c10d::ProcessGroup> held;  // or another may come to lie at its address
  py::object record, acquire, release;
  uint32_t key_id;
};

struct Call {  // what is known of a call before it is numbered
  std::shared_ptr<const Group> group;
  const at::Tensor* data = nullptr;  // the first one; on the stack
  const at::Tensor* output = nullptr;  // of an exchange of rows; on the stack
  std::string key;
  int64_t elements = 0, root = -1, reduce_op = -1;
  int members = 0;  // of an exchange of rows
  bool async_op = true;
};

struct Identity {  // string ids of a call's parts, and its signature
  uint32_t op, reduce_op, dtype, shape, tag, detail;
  uint64_t signature;
};

struct Code {
  bool internal, api;
  std::unordered_map<int, uint32_t> sites;  // by instruction
};

std::atomic<uint64_t> forks{0};

uint32_t native_thread() {
  thread_local uint64_t asked_after = UINT64_MAX;
  thread_local uint32_t id = 0;
  if (asked_after != forks.load(std::memory_order_relaxed)) {
    asked_after = forks.load(std::memory_order_relaxed);
    id = static_cast<uint32_t>(syscall(SYS_gettid));
  }
  return id;
}

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

template <typename T>
void add(std::string& key, T value) {
  key.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Names of attributes, made once: each look-up by a C string would make its own.
struct Names {
  PyObject *tag = name("tag"), *foreign = name("foreign"), *uncounted = name("uncounted_threads"),
           *most = name("most");
  static PyObject* name(const char* text) { return PyUnicode_InternFromString(text); }
};

py::object get(const py::handle& holder, PyObject* name) {
  PyObject* found = PyObject_GetAttr(holder.ptr(), name);
  if (found == nullptr) {
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(found);
}

class Lock {  // a group's: held over the redispatch, or two threads swap numbers and calls
 public:
  explicit Lock(const Group& group) : group_(group) {
    PyObject* done = PyObject_CallNoArgs(group.acquire.ptr());
    if (done == nullptr) {  // Ctrl-C, while another thread had it
      throw py::error_already_set();
    }
    Py_DECREF(done);
  }
  ~Lock() {
    PyObject* done = PyObject_CallNoArgs(group_.release.ptr());
    if (done == nullptr) {
      PyErr_Clear();
    }
    Py_XDECREF(done);
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  const Group& group_;
};

struct Objects {  // Python's, beside the compiled kernels
  explicit Objects(py::object beside)
      : python(std::move(beside)),
        recorder(python.attr("recorder")),
        ledger(recorder.attr("ledger")),
        groups(python.attr("groups")),
        known_groups(groups.attr("known")),
        works(python.attr("works")),
        known_works(works.attr("known")),
        current(py::module_::import("esper.lockstep.tags").attr("current")),
        thread_count(py::module_::import("_thread").attr("_count")) {}

  py::object python, recorder, ledger, groups, known_groups, works, known_works, current, thread_count;
  std::vector<py::object> codes, kernels;
  std::unordered_map<int, py::object> details;  // by operator: what tells an exchange's rows
  std::unordered_map<const c10d::ProcessGroup*, std::shared_ptr<const Group>> met;
};

struct Slots {  // of GroupRecord and Ledger
  Slots(const py::handle& group, const py::handle& ledger)
      : next(group, "next"), chain(group, "chain"), before(group, "chain_before"), count(ledger, "_count") {}
  Slot next, chain, before, count;
};

// A ledger's file, mapped. The last who holds it unmaps it: a collective may be done after the ledger was closed, or
// another one opened in its place.
class Mapping {
 public:
  Mapping(const std::string& ledger, size_t header, size_t capacity, size_t count_at)
      : header_(header), capacity_(capacity), count_at_(count_at), size_(header + capacity * sizeof(Record)) {
    const int file = open(ledger.c_str(), O_RDWR | O_CLOEXEC);
    void* map = file < 0 ? MAP_FAILED : mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) {
      close(file);
    }
    if (map == MAP_FAILED) {
      throw std::runtime_error(ledger + " can't be mapped: " + std::strerror(errno));
    }
    map_ = static_cast<char*>(map);
  }
  ~Mapping() { munmap(map_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  char* at(uint64_t number) { return map_ + header_ + number % capacity_ * sizeof(Record); }
  char* start() { return map_; }
  uint64_t* count() { return reinterpret_cast<uint64_t*>(map_ + count_at_); }

  // From any thread, with the GIL or without it; nothing where the ring has been used again.
  void done(uint64_t number) {
    if (__atomic_load_n(count(), __ATOMIC_ACQUIRE) - number < capacity_) {
      const double time = now();
      std::memcpy(at(number) + offsetof(Record, done), &time, sizeof(time));
    }
  }

 private:
  size_t header_, capacity_, count_at_, size_;
  char* map_ = nullptr;
};

class Rank {  // one rank's objects and ledger
 public:
  Rank(py::object python, size_t header, size_t count_at, size_t threads_at, std::string api)
      : objects_(std::make_unique<Objects>(std::move(python))),
        slots_(py::module_::import("esper.lockstep.rank.recorder").attr("GroupRecord"), py::type::of(objects_->ledger)),
        header_(header),
        count_at_(count_at),
        threads_at_(threads_at),
        api_(std::move(api)) {}

  void open_ledger(const std::string& ledger, size_t capacity) {
    ledger_ = std::make_shared<Mapping>(ledger, header_, capacity, count_at_);
  }

  ~Rank() {
    if (Py_IsInitialized() != 0) {
      const py::gil_scoped_acquire gil;
      objects_.reset();
    } else {  // torch's dispatcher outlives the interpreter
      static_cast<void>(objects_.release());
    }
  }
  Rank(const Rank&) = delete;
  Rank& operator=(const Rank&) = delete;

  // Nothing: the Python kernel's to do.
  std::optional<Call> look(const Operator& op, const c10::Stack& stack, size_t first) {
    if (!usual || PyEval_GetFrame() == nullptr) {
      return std::nullopt;
    }
    PyObject* handled = PyErr_GetHandledException();
    if (handled != nullptr) {
      const bool unwinding = handled != Py_None;
      Py_DECREF(handled);
      if (unwinding) {
        return std::nullopt;
      }
    }
    Call call;
    const auto group = stack[first + op.group].toCustomClass<c10d::ProcessGroup>();
    call.group = met(group);
    if (!call.group || !measure(stack[first + op.data], call.data, call.elements) || call.data == nullptr) {
      return std::nullopt;
    }
    if (!op.sized) {
      call.elements = 0;
    }
    if (op.reduce_op >= 0) {
      call.reduce_op = stack[first + op.reduce_op].toCustomClass<c10d::ReduceOp>()->op_;
    }
    if (op.root >= 0) {
      call.root = stack[first + op.root].toInt();
    }
    if (op.async_op >= 0) {
      call.async_op = stack[first + op.async_op].toBool();
    }
    call.key.reserve(128);
    add(call.key, op.number);
    add(call.key, call.reduce_op);
    add(call.key, call.root);
    add(call.key, call.elements);
    add(call.key, call.data->scalar_type());
    for (const int64_t size : call.data->sizes()) {
      add(call.key, size);
    }
    if (op.output >= 0) {  // what each member gets follows from these three where all get alike
      if (!stack[first + op.output_splits].toIntList().empty() || !stack[first + op.input_splits].toIntList().empty()) {
        return std::nullopt;
      }
      call.output = &stack[first + op.output].toTensor();
      call.members = group->getSize();
      add(call.key, call.output->numel());
      add(call.key, call.members);
    }
    const py::object tag = get(objects_->current, names_.tag);
    if (!tag.is_none()) {
      Py_ssize_t length = 0;
      const char* bytes = PyUnicode_Check(tag.ptr()) ? PyUnicode_AsUTF8AndSize(tag.ptr(), &length) : nullptr;
      if (bytes == nullptr) {
        PyErr_Clear();
        return std::nullopt;
      }
      call.key.push_back('t');
      call.key.append(bytes, length);
    }
    return call;
  }

  Identity identify(const Operator& op, const Call& call) {
    const auto known = calls_.find(call.key);
    if (known != calls_.end()) {
      return known->second;
    }
    py::object detail = py::none();
    if (call.output != nullptr) {
      detail = objects_->details[op.number](py::make_tuple(*call.output, *call.data), call.members);
    }
    const auto parts = objects_->python.attr("identify")(op.op, call.reduce_op, py::cast(*call.data), call.elements, call.root, detail)
                           .cast<std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint64_t>>();
    const Identity identity{std::get<0>(parts), std::get<1>(parts), std::get<2>(parts),
                            std::get<3>(parts), std::get<4>(parts), std::get<5>(parts), std::get<6>(parts)};
    if (calls_.size() >= MOST_CALLS) {
      calls_.clear();
    }
    calls_[call.key] = identity;
    return identity;
  }

  // The string id of the first frame that is the user's, and whether the call came from C++.
  std::pair<uint32_t, bool> caller() {
    py::object frame = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyEval_GetFrame()));
    bool first = true, native = true;
    while (frame) {
      auto* raw = reinterpret_cast<PyFrameObject*>(frame.ptr());
      const auto code = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(PyFrame_GetCode(raw)));
      const Code& seen = about(code);
      if (first) {
        native = !seen.api;
        first = false;
      }
      if (!seen.internal) {
        const int instruction = PyFrame_GetLasti(raw);
        const auto known = seen.sites.find(instruction);
        if (known != seen.sites.end()) {
          return {known->second, native};
        }
        const auto site = objects_->recorder.attr("site")(frame).cast<uint32_t>();
        const auto kept = codes_.find(code.ptr());  // another thread may have let go of it meanwhile
        if (kept != codes_.end()) {
          kept->second.sites[instruction] = site;
        }
        return {site, native};
      }
      frame = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(PyFrame_GetBack(raw)));
    }
    return {0, native};
  }

  uint64_t write(const Call& call, const Identity& parts, uint32_t site, uint32_t flags) {
    const py::handle group = call.group->record;
    const uint64_t sequence = slots_.next.get(group), before = slots_.chain.get(group);
    const uint64_t chain = before * STEP + parts.signature;
    slots_.next.set(group, sequence + 1);
    slots_.before.set(group, before);
    slots_.chain.set(group, chain);
    if ((flags & WAITED) != 0) {
      const auto threads = objects_->thread_count().cast<uint32_t>() + 1 +
                           static_cast<uint32_t>(get(objects_->recorder, names_.uncounted).ptr() == Py_True);
      std::memcpy(ledger_->start() + threads_at_, &threads, sizeof(threads));
    }
    const uint64_t number = slots_.count.get(objects_->ledger);
    slots_.count.set(objects_->ledger, number + 1);
    const Record record{0,          call.group->key_id, static_cast<uint32_t>(sequence), parts.op, parts.reduce_op,
                        parts.dtype, parts.shape, site, parts.tag, parts.detail,
                        static_cast<int32_t>(call.root), -1, static_cast<uint64_t>(call.elements), chain, now(),
                        0.0, 0.0, 0.0, native_thread(), flags};
    std::memcpy(ledger_->at(number), &record, sizeof(record));
    __atomic_store_n(ledger_->count(), number + 1, __ATOMIC_RELEASE);
    return number;
  }

  void set_flags(uint64_t number, uint32_t flags) {
    std::memcpy(ledger_->at(number) + offsetof(Record, flags), &flags, sizeof(flags));
  }

  void follow(const c10::intrusive_ptr<c10d::Work>& work, uint64_t number, bool waited) {
    const auto most = get(objects_->works, names_.most).cast<Py_ssize_t>();
    if (PyDict_Size(objects_->known_works.ptr()) >= most) {
      objects_->works.attr("forget_done")();
    }
    const py::object object = py::cast(work);
    const auto id = py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(object.ptr()));
    objects_->known_works[id] = py::make_tuple(object, number, waited);
  }

  // Of a call from C++ nobody sees the wait end, so its record says when the backend was done with it. The callback
  // runs in a thread of the backend, or here: it may neither take the GIL nor hold anything of Python's.
  void follow_native(c10d::Work& work, uint64_t number) {
    try {
      const auto future = work.getFuture();
      if (future) {
        future->addCallback([ledger = ledger_, number](c10::ivalue::Future&) { ledger->done(number); }, false);
      }
    } catch (const std::exception&) {  // it has none: gloo's sends and receives
    }
  }

  // Call with a C++ exception in flight; does not come back.
  [[noreturn]] void failed(const Call& call, uint64_t number) {
    torch::translate_exception_to_python(std::current_exception());
    py::error_already_set error;
    objects_->python.attr("not_taken")(error.value(), number, call.group->record);
    throw error;
  }

  void keep_detail(int operator_number, py::object detail) { objects_->details[operator_number] = std::move(detail); }

  py::handle keep(py::object kernel) { return objects_->kernels.emplace_back(std::move(kernel)); }

  void forget_groups() { objects_->met.clear(); }

  bool usual = false;  // its ledger is open, and nothing stands between the program and its collectives

 private:
  // Null: not one that has been recorded yet.
  std::shared_ptr<const Group> met(const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    const auto kept = objects_->met.find(group.get());
    if (kept != objects_->met.end()) {
      return kept->second;
    }
    const std::string& name = group->getGroupName();
    const py::object text = py::reinterpret_steal<py::object>(PyUnicode_FromStringAndSize(name.data(), name.size()));
    PyObject* known = text ? PyDict_GetItemWithError(objects_->known_groups.ptr(), text.ptr()) : nullptr;
    if (known == nullptr || get(objects_->groups, names_.foreign).ptr() != Py_False) {
      PyErr_Clear();
      return nullptr;
    }
    const auto record = py::reinterpret_borrow<py::object>(known);
    const py::object lock = record.attr("lock");
    return objects_->met[group.get()] = std::make_shared<const Group>(
               Group{c10::weak_intrusive_ptr<c10d::ProcessGroup>(group), record, lock.attr("acquire"),
                     lock.attr("release"), record.attr("key_id").cast<uint32_t>()});
  }

  const Code& about(const py::object& code) {
    const auto known = codes_.find(code.ptr());
    if (known != codes_.end()) {
      return known->second;
    }
    const py::object file = code.attr("co_filename");
    const bool internal = objects_->recorder.attr("is_internal")(file).cast<bool>();
    if (codes_.size() >= MOST_CODES) {
      codes_.clear();
      objects_->codes.clear();
    }
    objects_->codes.push_back(code);  // or another code may come to lie at its address
    return codes_[code.ptr()] = Code{internal, file.cast<std::string>() == api_, {}};
  }

  // False: not plain dense tensors with data, alone or in lists.
  static bool measure(const c10::IValue& value, const at::Tensor*& described, int64_t& elements) {
    if (value.isTensor()) {
      const at::Tensor& tensor = value.toTensor();
      if (!tensor.defined() || tensor.is_meta() || tensor.layout() != at::kStrided) {
        return false;
      }
      described = described == nullptr ? &tensor : described;
      elements += tensor.numel();
      return true;
    }
    if (!value.isList()) {
      return false;
    }
    for (const c10::IValue& one : value.toListRef()) {
      if (!measure(one, described, elements)) {
        return false;
      }
    }
    return true;
  }

  Names names_;
  std::unique_ptr<Objects> objects_;
  Slots slots_;
  size_t header_, count_at_, threads_at_;
  std::string api_;
  std::shared_ptr<Mapping> ledger_;
  std::unordered_map<PyObject*, Code> codes_;
  std::unordered_map<std::string, Identity> calls_;
};

class Functor : public c10::OperatorKernel {
 public:
  Functor(std::shared_ptr<Rank> rank, Operator op, py::handle python)
      : rank_(std::move(rank)), op_(std::move(op)), python_(python) {}

  void operator()(const c10::OperatorHandle& handle, c10::DispatchKeySet keys, c10::Stack* stack) {
    if (Py_IsInitialized() == 0) {  // a thread of C++ that outlives the interpreter
      handle.redispatchBoxed(keys & BELOW, stack);
      return;
    }
    const py::gil_scoped_acquire gil;
    const size_t first = stack->size() - handle.schema().arguments().size();
    std::optional<Call> call;
    try {
      call = rank_->look(op_, *stack, first);
    } catch (const c10::Error&) {  // traced, or with symbols for sizes
      call.reset();
    }
    if (!call) {
      in_python(handle, keys, stack);
      return;
    }
    const Identity parts = rank_->identify(op_, *call);
    const auto [site, native] = rank_->caller();
    const uint32_t waited = native || !call->async_op ? WAITED : 0;
    const uint32_t flags = waited | (native ? NATIVE : 0);
    // NCCL's future is done as soon as its kernel is in the stream. Asked now: the call takes its data off the stack.
    const bool stamped = native && call->data->is_cpu();
    uint64_t number = 0;
    {
      const Lock lock(*call->group);
      number = rank_->write(*call, parts, site, flags | OFFERED);
      try {
        const py::gil_scoped_release no_gil;
        handle.redispatchBoxed(keys & BELOW, stack);
      } catch (...) {
        rank_->failed(*call, number);
      }
      rank_->set_flags(number, flags);
    }
    if (native && !stamped) {
      return;
    }
    const auto work = stack->back().toCustomClass<c10d::Work>();
    if (stamped && work) {
      rank_->follow_native(*work, number);
    } else if (!native && work) {
      rank_->follow(work, number, waited != 0);
    } else if (!native) {  // NCCL's of a synchronous call: its stream waits, and the program goes on
      rank_->set_flags(number, flags | WAITED | POLLED);
    }
  }

 private:
  void in_python(const c10::OperatorHandle& handle, c10::DispatchKeySet keys, c10::Stack* stack) {
    const auto& schema = handle.schema();
    const auto arguments = torch::jit::pop(*stack, schema.arguments().size());
    py::tuple given(arguments.size() + 1);
    given[0] = py::cast(keys);
    for (size_t at = 0; at < arguments.size(); ++at) {
      given[at + 1] = torch::jit::toPyObject(arguments[at]);
    }
    const py::object out = python_(*given);
    const auto& returned = schema.returns();
    if (returned.size() == 1) {
      stack->push_back(torch::jit::toIValue(out, returned[0].type()));
      return;
    }
    const auto several = out.cast<py::tuple>();
    for (size_t at = 0; at < returned.size(); ++at) {
      stack->push_back(torch::jit::toIValue(several[at], returned[at].type()));
    }
  }

  static constexpr c10::DispatchKeySet BELOW{c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::BackendSelect};
  std::shared_ptr<Rank> rank_;
  Operator op_;
  py::handle python_;  // kept by its rank
};

class Kernels {  // beside those in Python; gone when this is closed
 public:
  Kernels(py::object python, size_t header, size_t record, size_t count_at, size_t threads_at, std::string api)
      : library_(std::make_unique<torch::Library>(torch::Library::IMPL, "c10d", c10::DispatchKey::BackendSelect,
                                                  __FILE__, __LINE__)) {
    TORCH_CHECK(record == sizeof(Record), "a record has ", record, " bytes, the compiled kernel writes ",
                sizeof(Record));
    rank_ = std::make_shared<Rank>(std::move(python), header, count_at, threads_at, std::move(api));
  }

  void add(const std::string& name, std::string op, int group, int data, int reduce_op, int async_op, int root,
           int output, int output_splits, int input_splits, bool sized, py::object python, py::object detail) {
    Operator about{std::move(op), added_++, group, data, reduce_op, async_op, root,
                   output, output_splits, input_splits, sized};
    if (!detail.is_none()) {
      rank_->keep_detail(about.number, std::move(detail));
    }
    const py::handle kept = rank_->keep(std::move(python));
    library_->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunctor(
                                     std::make_unique<Functor>(rank_, std::move(about), kept)));
  }

  void open_ledger(const std::string& ledger, size_t capacity) { rank_->open_ledger(ledger, capacity); }
  bool usual() const { return rank_->usual; }
  void set_usual(bool usual) { rank_->usual = usual; }
  void forget_groups() { rank_->forget_groups(); }
  // For a call from C++ that went to the Python kernel.
  void follow_native(const c10::intrusive_ptr<c10d::Work>& work, uint64_t number) { rank_->follow_native(*work, number); }

  void close() {
    library_.reset();
    rank_.reset();
  }

 private:
  std::unique_ptr<torch::Library> library_;
  std::shared_ptr<Rank> rank_;
  int added_ = 0;
};

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
  py::class_<Kernels>(module, "Kernels")
      .def(py::init<py::object, size_t, size_t, size_t, size_t, std::string>())
      .def("open_ledger", &Kernels::open_ledger)
      .def("add", &Kernels::add)
      .def_property("usual", &Kernels::usual, &Kernels::set_usual)
      .def("forget_groups", &Kernels::forget_groups)
      .def("follow_native", &Kernels::follow_native)
      .def("close", &Kernels::close);
}
