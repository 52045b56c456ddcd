// The methods of an Operation that start_batch() or start_executemany() gave.
#include "py/batch.hpp"

#include <ctime>

#include "core/keyword.hpp"
#include "py/codecs/codecs.hpp"
#include "py/errors.hpp"
#include "py/plan.hpp"
#include "py/record.hpp"
#include "py/result.hpp"

namespace pgpoll::py {
namespace {

constexpr std::size_t fed_bytes = std::size_t{1} << 16;  // of one run, but for its last row

operation_object* self_of(PyObject* object) {
  return reinterpret_cast<operation_object*>(object);
}

bool check_batch(const operation_object* self, bool many) {
  if (self->batch != nullptr && self->op->batch && self->op->batch->many == many) return check_process(self);
  raise_interface_error(many ? "the operation is no executemany" : "the operation is no batch");
  return false;
}

// Items leave with the flush of this turn, not each by itself.
void note_unflushed(operation_object* self) {
  self->driver->unflushed = true;
  self->driver->burst = false;
}

bool may_add(const operation_object* self) {
  if (!self->op->batch->ended && !self->op->abandoned) return true;
  raise_interface_error("the batch has ended");
  return false;
}

bool is_live(const operation_object* self) {
  return self->driver != nullptr && !self->op->done() && !self->op->abandoned;
}

// ---- items one by one

void forget_written(operation_object* self) {
  auto& unsent = self->batch->unsent;
  const auto written = self->op->done() ? self->op->batch->added : self->op->batch->written;
  while (!unsent.empty() && unsent.front().number < written) unsent.pop_front();
}

bool refuse_copy(std::string_view sql) {
  if (core::verb_of(sql) != core::verb::copy) return true;
  raise_interface_error("COPY can't be part of a batch: use copy_in(), copy_out() and the like");
  return false;
}

// What encoding runs may use the batch itself: what counts is how it is then.
bool add_item(operation_object* self, PyObject* sql, PyObject* arguments) {
  std::string_view text;
  core::statement_ptr known;
  auto& session = *self->driver->session;
  if (is_prepared(sql)) {
    known = reinterpret_cast<prepared_object*>(sql)->statement;
    text = known->sql;
    if (!session.owns(*known)) {
      raise_interface_error("the statement was prepared on another connection: prepare it on this one");
      return false;
    }
  } else if (!read_sql(sql, text)) {
    return false;
  }
  if (!refuse_copy(text)) return false;
  if (!known || known->stale) known = session.find_statement(text);
  std::string encoded;
  auto context = ref::steal(PyContext_CopyCurrent());
  if (!context) return false;
  if (known && !encode_arguments(*known, &PyTuple_GET_ITEM(arguments, 0), PyTuple_GET_SIZE(arguments), encoded))
    return false;
  if (!may_add(self)) return false;
  if (!is_live(self)) {
    ++self->op->batch->added;
    return true;
  }
  forget_written(self);
  self->batch->unsent.push_back({self->op->batch->added, ref::borrow(arguments), std::move(context)});
  note_unflushed(self);
  if (known)
    session.add(*self->op, std::move(known), encoded);
  else
    session.add(*self->op, std::string(text));
  return true;
}

PyObject* add(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 2) {
    PyErr_SetString(PyExc_TypeError, "add(sql, args=())");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_batch(self, false) || !may_add(self)) return nullptr;
    const auto arguments = count < 2 ? ref::steal(PyTuple_New(0)) : ref::borrow(args[1]);
    if (!arguments) return nullptr;
    if (!PyTuple_Check(arguments.get()))
      return raise_interface_error(std::string("args must be a tuple, not ") + Py_TYPE(arguments.get())->tp_name);
    if (!is_live(self))
      ++self->op->batch->added;  // it has failed: this one is skipped
    else if (!add_item(self, args[0], arguments.get()))
      return nullptr;
    return PyLong_FromSize_t(self->op->batch->added - 1);
  });
}

PyObject* build(core::raw_result raw, wanted want) {
  if (want == wanted::result) return result_new(std::move(raw));
  if (raw.rows.size() == 0) return want == wanted::rows ? PyList_New(0) : Py_NewRef(Py_None);
  const auto plan = find_plan(raw.columns, false);
  if (plan == nullptr) return nullptr;
  if (want == wanted::row) return plan->row(*raw.columns, raw.rows.row(0), 0);
  if (want == wanted::value) return plan->first_value(*raw.columns, raw.rows.row(0), 0);
  ref list;
  return plan->append(*raw.columns, raw.rows, list) ? finish_list(list) : nullptr;
}

PyObject* item(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 2) {
    PyErr_SetString(PyExc_TypeError, "item(number, want=RESULT)");
    return nullptr;
  }
  const auto number = PyLong_AsSize_t(args[0]);
  const auto want = count < 2 || PyErr_Occurred() != nullptr ? 0 : PyLong_AsLong(args[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_batch(self, false)) return nullptr;
    if (want < 0 || want > static_cast<long>(wanted::value))
      return raise_interface_error("want must be RESULT, ROWS, ROW or VALUE, not " + std::to_string(want));
    if (!ref::steal(operation_result(self))) return nullptr;
    if (number >= self->op->results.size()) return raise_interface_error("the batch has no such item");
    return build(std::exchange(self->op->results[number], {}), static_cast<wanted>(want));
  });
}

// ---- rows of executemany

// The arguments of one row, as a tuple that stays as it is; null with an exception set.
ref arguments_of(PyObject* row) {
  if (PyTuple_Check(row)) return ref::borrow(row);
  if (PyList_Check(row)) return ref::steal(PyList_AsTuple(row));
  if (PyObject_TypeCheck(row, record_type())) return ref::steal(PySequence_Tuple(row));
  raise_interface_error(std::string("an item of executemany must be a tuple or a list of arguments, not ") +
                        Py_TYPE(row)->tp_name);
  return {};
}

constexpr double slice_seconds = 0.05;

// Seconds, to a few milliseconds: it is asked for each row.
double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

// Bind and Execute of one run after another, while there is room.
class row_encoder {
 public:
  row_encoder(operation_object* self, PyObject* rows) : self_(self), rows_(rows) {}

  // Pulls the first row, and lets the statement be described; false with an exception set.
  bool open() {
    auto& side = *self_->batch;
    if (side.taken != 0) return true;
    side.first = next();
    if (!side.first) return PyErr_Occurred() == nullptr;
    if (!is_live(self_)) return true;
    note_unflushed(self_);
    session().look(*self_->op);
    session().describe_items(*self_->op);
    return true;
  }

  bool exhausted() const { return exhausted_; }

  bool feed() {
    const auto statement = self_->op->statement;
    const auto most = core::largest_run(session().max_pipeline());
    bool opens = session().opens_items(*self_->op);
    std::size_t count = 0;
    const double until = now() + slice_seconds;  // rows may be slow to come: what there is leaves, and is answered
    for (; count < most && messages_.size() < fed_bytes && (count == 0 || now() < until); ++count, opens = false) {
      auto row = self_->batch->first ? std::move(self_->batch->first) : next();
      if (exhausted_) break;
      if (!row) return false;
      if (encode(*statement, row.get(), opens)) continue;
      self_->batch->refused = self_->batch->taken - 1;
      return false;
    }
    if (count == 0 || !is_live(self_)) return true;
    note_unflushed(self_);
    session().look(*self_->op);
    session().feed(*self_->op, std::move(messages_), count);
    return true;
  }

 private:
  core::session& session() { return *self_->driver->session; }

  ref next() {
    auto row = ref::steal(PyIter_Next(rows_));
    exhausted_ = !row && PyErr_Occurred() == nullptr;
    if (row) ++self_->batch->taken;
    return row;
  }

  bool encode(const core::statement& statement, PyObject* row, bool opens) {
    const auto arguments = arguments_of(row);
    encoded_.clear();
    if (!arguments || !encode_arguments(statement, &PyTuple_GET_ITEM(arguments.get(), 0),
                                        PyTuple_GET_SIZE(arguments.get()), encoded_))
      return false;
    core::append_execution(messages_, statement, encoded_, opens);
    return true;
  }

  operation_object* self_;
  PyObject* rows_;
  std::string messages_;
  std::string encoded_;
  bool exhausted_ = false;
};

// Neither a row nor its encoding, which run a caller's code, may take rows of the same operation.
class taking_rows {
 public:
  explicit taking_rows(batch_side& side) : side_(side) { side.taking = true; }
  ~taking_rows() { side_.taking = false; }
  taking_rows(const taking_rows&) = delete;
  taking_rows& operator=(const taking_rows&) = delete;

 private:
  batch_side& side_;
};

PyObject* feed(PyObject* object, PyObject* rows) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_batch(self, true)) return nullptr;
    if (!PyIter_Check(rows)) return raise_interface_error("feed_rows() takes an iterator: use iter()");
    auto held = ref::borrow(object);
    if (!is_live(self)) Py_RETURN_FALSE;
    if (!self->driver->session->may_feed(*self->op)) {
      self->driver->session->look(*self->op);
      Py_RETURN_FALSE;
    }
    if (self->batch->taking) return raise_interface_error("its rows are being taken");
    const taking_rows during(*self->batch);
    row_encoder encoder(self, rows);
    if (!encoder.open()) return nullptr;
    if (!encoder.exhausted() && is_live(self) && self->driver->session->may_feed(*self->op) && !encoder.feed())
      return nullptr;
    return PyBool_FromLong(encoder.exhausted());
  });
}

PyObject* end(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_batch(self, self->op->batch && self->op->batch->many)) return nullptr;
    if (is_live(self)) {
      note_unflushed(self);
      self->driver->session->end_items(*self->op);
    }
    Py_RETURN_NONE;
  });
}

// ---- what became of it

PyObject* number_or_none(std::optional<std::size_t> number) {
  if (!number) Py_RETURN_NONE;
  return PyLong_FromSize_t(*number);
}

PyObject* failed_item(PyObject* object, void*) {
  auto* self = self_of(object);
  if (self->batch == nullptr || !self->op->batch) Py_RETURN_NONE;
  return number_or_none(self->batch->refused ? self->batch->refused : self->op->batch->failed);
}

PyObject* answered(PyObject* object, void*) {
  const auto& items = self_of(object)->op->batch;
  return PyLong_FromSize_t(items ? items->answered : 0);
}

PyObject* items_written(PyObject* object, void*) {
  const auto& items = self_of(object)->op->batch;
  return PyLong_FromSize_t(items ? items->written : 0);
}

PyObject* settled(PyObject* object, void*) {
  const auto& items = self_of(object)->op->batch;
  return PyBool_FromLong(items && items->settled);
}

}  // namespace

batch_side::unsent_item* asked_item(operation_object* handle) {
  forget_written(handle);
  auto& unsent = handle->batch->unsent;
  return unsent.empty() ? nullptr : &unsent.front();
}

int traverse_batch(operation_object* handle, visitproc visit, void* arg) {
  if (handle->batch == nullptr) return 0;
  for (const auto& each : handle->batch->unsent) {
    Py_VISIT(each.arguments.get());
    Py_VISIT(each.context.get());
  }
  Py_VISIT(handle->batch->first.get());
  return 0;
}

PyMethodDef batch_add = {"add", method(add), METH_FASTCALL,
                         "add(sql, args=()): one more item of a batch, whose number it gives."};
PyMethodDef batch_feed = {"feed_rows", feed, METH_O,
                          "Takes as many rows of an iterator as there is room for; True once it has no more."};
PyMethodDef batch_end = {"end", end, METH_NOARGS, "The batch, or executemany, has no more items."};
PyMethodDef batch_item = {"item", method(item), METH_FASTCALL,
                          "item(number, want=RESULT): what that item of a batch gave; once."};

PyGetSetDef batch_failed_item = {"failed_item", failed_item, nullptr,
                                 "The item whose error the batch failed with, counted from 0; else None.", nullptr};
PyGetSetDef batch_answered = {"items_answered", answered, nullptr, "The items that the server has executed.", nullptr};
PyGetSetDef batch_written = {"items_written", items_written, nullptr, "The items that may have left.", nullptr};
PyGetSetDef batch_settled = {"settled", settled, nullptr, "Whether the server has told the end of the batch.", nullptr};

}  // namespace pgpoll::py
