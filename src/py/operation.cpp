#include "py/operation.hpp"

#include <vector>

#include "py/awaitable.hpp"
#include "py/batch.hpp"
#include "py/codecs/codecs.hpp"
#include "py/copying.hpp"
#include "py/errors.hpp"
#include "py/observing.hpp"
#include "py/plan.hpp"
#include "py/result.hpp"

namespace pgpoll::py {
namespace {

PyTypeObject* the_operation_type = nullptr;

operation_object* self_of(PyObject* object) {
  return reinterpret_cast<operation_object*>(object);
}

PyObject* build_script(std::vector<core::raw_result>& results) {
  auto list = ref::steal(PyList_New(0));
  if (!list) return nullptr;
  for (auto& each : results) {
    auto item = ref::steal(result_new(std::move(each), true));
    if (!item || PyList_Append(list.get(), item.get()) < 0) return nullptr;
  }
  return list.release();
}

PyObject* build_gathered(operation_object* self) {
  gather(self);
  if (self->bad_value != nullptr) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(self->bad_value)), self->bad_value);
    return nullptr;
  }
  auto all = ref::steal(std::exchange(self->gathered, nullptr));
  if (self->want == wanted::rows) return all ? finish_list(all) : PyList_New(0);
  return all ? all.release() : Py_NewRef(Py_None);
}

PyObject* build_result(operation_object* self) {
  using kind = enum core::operation::kind;
  auto& op = *self->op;
  switch (op.kind) {
    case kind::execute:
      if (self->want != wanted::result) return build_gathered(self);
      if (op.results.empty()) op.results.emplace_back();
      return result_new(std::move(op.results.front()), false);
    case kind::copy_in:
    case kind::copy_out: {  // what is left of it: its tag
      core::raw_result left;
      if (!op.results.empty()) left.tag = op.results.back().tag;
      return result_new(std::move(left), false);
    }
    case kind::script:
      return build_script(op.results);
    case kind::prepare:
      return prepared_new(op.statement);
    case kind::command:
      return decoded(op.results.empty() ? std::string_view() : std::string_view(op.results.back().tag)).release();
    case kind::stream:
      return decoded(op.results.empty() ? std::string_view() : std::string_view(op.results.front().tag)).release();
    case kind::fetch:
      return PyBool_FromLong(op.portal->suspended);
    case kind::batch:
      if (!op.batch->many) break;
      if (op.results.empty()) op.results.emplace_back().none = true;
      return result_new(std::move(op.results.front()));
    case kind::connect:
    case kind::close_portal:
    case kind::close:
    case kind::cancel:
    case kind::drain:
      break;
  }
  Py_RETURN_NONE;
}

PyObject* raise_kept(operation_object* self) {
  if (outcome_error(self) == nullptr) return nullptr;
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(self->error)), self->error);
  return nullptr;
}

PyObject* done(PyObject* object, PyObject*) {
  return PyBool_FromLong(self_of(object)->op->done());
}

PyObject* result(PyObject* object, PyObject*) {
  return guarded([&] { return operation_result(self_of(object)); });
}

PyObject* abandon_method(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!check_process(self)) return nullptr;
    if (self->waiter == nullptr) {
      abandon(self);
      if (self->driver != nullptr && !tell_at_once(self->driver)) return nullptr;
    } else if (!ref::steal(waiter_cancel(self->waiter, Py_None))) {
      return nullptr;
    }
    Py_RETURN_NONE;
  });
}

PyObject* sql(PyObject* object, void*) {
  auto* self = self_of(object);
  if (self->sql == nullptr) Py_RETURN_NONE;
  if (is_prepared(self->sql)) return PyObject_GetAttrString(self->sql, "sql");
  return Py_NewRef(self->sql);
}

PyObject* written(PyObject* object, void*) {
  return PyBool_FromLong(self_of(object)->op->written);
}

PyObject* statement(PyObject* object, void*) {
  const auto& known = self_of(object)->op->statement;
  if (!known) Py_RETURN_NONE;
  return guarded([&] { return prepared_new(known); });
}

PyObject* stirred(PyObject* object, void*) {
  return PyBool_FromLong(self_of(object)->op->stirred);
}

PyObject* on_stir(PyObject* object, void*) {
  auto* callback = self_of(object)->on_stir;
  return Py_NewRef(callback != nullptr ? callback : Py_None);
}

int set_on_stir(PyObject* object, PyObject* callback, void*) {
  auto* self = self_of(object);
  auto before = ref::steal(std::exchange(self->on_stir, nullptr));
  if (callback != nullptr && callback != Py_None) self->on_stir = Py_NewRef(callback);
  return 0;
}

PyObject* connection(PyObject* object, void*) {
  auto* driver = self_of(object)->driver;
  return Py_NewRef(driver != nullptr ? reinterpret_cast<PyObject*>(driver) : Py_None);
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  auto* self = self_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(self->sql);
  Py_VISIT(self->arguments);
  Py_VISIT(self->context);
  if (self->observed != nullptr) Py_VISIT(self->observed->context.get());
  Py_VISIT(self->gathered);
  Py_VISIT(self->bad_value);
  Py_VISIT(self->result);
  Py_VISIT(self->error);
  Py_VISIT(self->on_stir);
  Py_VISIT(reinterpret_cast<PyObject*>(self->waiter));
  return traverse_batch(self, visit, arg);
}

int clear(PyObject* object) {
  auto* self = self_of(object);
  Py_CLEAR(self->sql);
  forget_arguments(self);
  delete std::exchange(self->observed, nullptr);
  delete std::exchange(self->batch, nullptr);
  Py_CLEAR(self->gathered);
  Py_CLEAR(self->bad_value);
  Py_CLEAR(self->result);
  Py_CLEAR(self->error);
  Py_CLEAR(self->on_stir);
  Py_CLEAR(self->waiter);
  return 0;
}

void dealloc(PyObject* object) {
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  if (self->driver != nullptr) {
    (self->previous != nullptr ? self->previous->next : self->driver->operations) = self->next;
    if (self->next != nullptr) self->next->previous = self->previous;
  }
  clear(object);
  forget_rows(self);
  if (self->op && self->op->owner == self) self->op->owner = nullptr;
  std::destroy_at(&self->op);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"done", done, METH_NOARGS, "Whether the outcome is known."},
    {"result", result, METH_NOARGS,
     "The outcome, and takes it: a Result, a list of them (script), a PreparedStatement (prepare), a tag (command) or\n"
     "None. Raises the request's own error; InterfaceError while it is not done, or if it was abandoned."},
    {"abandon", abandon_method, METH_NOARGS,
     "Interest ends; the protocol does not: what was sent is read to its end and discarded."},
    batch_add,
    batch_feed,
    batch_end,
    batch_item,
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {
    {"sql", sql, nullptr, "The text that was given, or None.", nullptr},
    {"written", written, nullptr, "Whether a byte of it may have left: False means that it is safe to retry.", nullptr},
    {"statement", statement, nullptr, "The PreparedStatement that it runs, once known; else None.", nullptr},
    {"stirred", stirred, nullptr, "A channel: there is something to take, or room to feed.", nullptr},
    {"on_stir", on_stir, set_on_stir, "Called without arguments when it has stirred, or is done; or None.", nullptr},
    batch_failed_item,
    batch_answered,
    batch_written,
    batch_settled,
    {"connection", connection, nullptr, "Its Connection or Session; None once that is gone.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

}  // namespace

PyTypeObject* operation_type() {
  return the_operation_type;
}

bool check_process(const operation_object* handle) {
  return handle->driver == nullptr || check_process(handle->driver);
}

operation_object* operation_new(driver_object* driver, PyObject* sql) {
  auto* self = reinterpret_cast<operation_object*>(the_operation_type->tp_alloc(the_operation_type, 0));
  if (self == nullptr) return nullptr;
  std::construct_at(&self->op);
  self->sql = Py_XNewRef(sql);
  self->driver = driver;
  self->next = driver->operations;
  if (self->next != nullptr) self->next->previous = self;
  driver->operations = self;
  return self;
}

void keep(operation_object* handle, core::operation_ptr op) {
  op->owner = handle;
  handle->op = std::move(op);
  handle->kept = true;
  Py_INCREF(as_object(handle));
}

ref let_go(operation_object* handle) {
  if (!handle->kept) return {};
  handle->kept = false;
  handle->op->owner = nullptr;
  forget_arguments(handle);
  return ref::steal(as_object(handle));
}

void take(operation_object* handle) {
  if (!handle->kept || !handle->op->done()) return;
  if (handle->driver != nullptr) handle->driver->session->take(*handle->op);
  let_go(handle);
}

void forget_arguments(operation_object* handle) {
  Py_CLEAR(handle->arguments);
  Py_CLEAR(handle->context);
}

PyObject* outcome_error(operation_object* handle) {
  const auto& why = handle->op->error;
  if (handle->batch != nullptr && std::exchange(handle->batch->encoding_raised, false) && why &&
      why->kind != core::failure::kind::refused)
    Py_CLEAR(handle->error);  // an item before that one has failed
  if (handle->error == nullptr) {
    static const core::failure unknown{core::failure::kind::lost, "the request failed without a reason", {}, {}};
    handle->error = make_error(handle->op->error ? *handle->op->error : unknown, *handle->op).release();
  }
  return handle->error;
}

void abandon(operation_object* handle, PyObject* error) {
  if (!handle->kept || handle->driver == nullptr) return;
  auto* driver = handle->driver;
  if (handle->observed != nullptr) {
    const auto handled = error == nullptr ? ref::steal(PyErr_GetHandledException()) : ref::borrow(error);
    note_given_up(handle, handled.get() == Py_None ? nullptr : handled.get());
  }
  auto mine = let_go(handle);
  driver = handle->driver;  // null where the last that held it were the arguments
  if (handle->op->done()) {
    if (driver != nullptr) driver->session->take(*handle->op);
    handle->op->abandoned = true;
  } else if (driver != nullptr) {
    driver->session->abandon(*handle->op);
    driver->unflushed = true;
  }
  forget_arguments(handle);
  forget_rows(handle);
  Py_CLEAR(handle->gathered);
  Py_CLEAR(handle->on_stir);
}

void gather(operation_object* handle) {
  if (handle->want == wanted::result || handle->op->results.empty()) return;
  auto& result = handle->op->results.front();
  if (result.rows.size() == 0) return;
  const auto rows = std::exchange(result.rows, {});
  if (handle->observed != nullptr) handle->observed->rows += rows.size();
  const auto columns = result.columns;
  if (handle->bad_value != nullptr || (handle->want != wanted::rows && handle->gathered != nullptr)) return;

  auto held = ref::borrow(as_object(handle));  // decoding may run a caller's code
  auto so_far = ref::steal(std::exchange(handle->gathered, nullptr));
  const auto plan = find_plan(columns, false);
  bool good = plan != nullptr;
  if (good && handle->want == wanted::rows) {
    good = plan->append(*columns, rows, so_far);
  } else if (good) {
    so_far = ref::steal(handle->want == wanted::row ? plan->row(*columns, rows.row(0), 0)
                                                    : plan->first_value(*columns, rows.row(0), 0));
    good = static_cast<bool>(so_far);
  }
  if (good) {
    handle->gathered = so_far.release();
  } else {
    auto raised = pending_error::fetch();
    handle->bad_value = raised.take();
  }
}

PyObject* operation_result(operation_object* handle) {
  auto& op = *handle->op;
  if (!op.done() && !op.abandoned) return raise_interface_error("the operation is not finished");
  auto held = ref::borrow(as_object(handle));
  take(handle);
  if (op.abandoned || op.state == core::operation::state::cancelled)
    return raise_interface_error("the operation was abandoned");
  if (op.state == core::operation::state::failed || handle->error != nullptr) return raise_kept(handle);
  if (handle->result == nullptr) handle->result = build_result(handle);
  if (handle->result == nullptr) {  // what it was built from is gone: the same error each time
    auto raised = pending_error::fetch();
    handle->error = raised.take();
    return raise_kept(handle);
  }
  return Py_NewRef(handle->result);
}

int register_operation(PyObject* module) {
  static auto all_methods = joined({methods, row_methods, copy_methods});
  static auto all_properties = joined({properties, copy_properties});
  PyType_Slot slots[] = {{Py_tp_dealloc, slot(dealloc)},
                         {Py_tp_traverse, slot(traverse)},
                         {Py_tp_clear, slot(clear)},
                         {Py_tp_methods, all_methods.data()},
                         {Py_tp_getset, all_properties.data()},
                         {Py_tp_doc, const_cast<char*>("One request, from start to outcome.")},
                         {0, nullptr}};
  PyType_Spec spec = {
      "pgpoll.core.Operation", sizeof(operation_object), 0,
      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  the_operation_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  return the_operation_type == nullptr ? -1 : PyModule_AddType(module, the_operation_type);
}

}  // namespace pgpoll::py
