// What an Operation of a COPY does besides, and _CopyDecoder: Records of a COPY TO STDOUT in the binary format.
//
// A tuple of that format is laid out as a DataRow's body is, so the plans that decode rows decode these. It may be cut
// anywhere between two CopyData; each row is checked in full before it is decoded.
#include "py/copying.hpp"

#include <cstdint>
#include <string>

#include "core/session.hpp"
#include "py/errors.hpp"
#include "py/operation.hpp"
#include "py/plan.hpp"
#include "wire/bytes.hpp"

namespace pgpoll::py {
namespace {

using kind = enum core::operation::kind;
using feeding = enum core::operation::feeding;

operation_object* operation_of(PyObject* object) {
  return reinterpret_cast<operation_object*>(object);
}

bool is_copy(const core::operation& op, kind wanted) {
  if (op.kind == wanted) return true;
  raise_interface_error(wanted == kind::copy_in ? "only an operation of start_copy_in() is fed"
                                                : "only an operation of start_copy_out() has data to take");
  return false;
}

// Whether it may be fed, or ended, now; with the exception set where not.
bool may_feed(operation_object* self) {
  const auto& op = *self->op;
  if (!is_copy(op, kind::copy_in) || (self->driver != nullptr && !check_process(self->driver))) return false;
  if (op.feeding == feeding::not_begun && !op.done()) {
    raise_interface_error("COPY has not begun: it is fed when it has stirred");
    return false;
  }
  if (op.feeding != feeding::ended) return true;
  raise_interface_error("COPY has been ended");
  return false;
}

// Whoever feeds has looked, also where the server takes nothing any more.
core::session* session_of(operation_object* self) {
  if (self->driver == nullptr) return nullptr;
  self->driver->session->look(*self->op);
  if (!self->op->feeds()) return nullptr;
  self->driver->unflushed = true;
  return self->driver->session;
}

PyObject* feed(PyObject* object, PyObject* data) {
  auto* self = operation_of(object);
  Py_buffer bytes;
  if (!may_feed(self) || PyObject_GetBuffer(data, &bytes, PyBUF_SIMPLE) < 0) return nullptr;
  auto* answer = guarded([&] {
    auto* session = session_of(self);
    const std::string_view all(static_cast<const char*>(bytes.buf), static_cast<std::size_t>(bytes.len));
    return PyBool_FromLong(session != nullptr && session->feed(*self->op, all));
  });
  PyBuffer_Release(&bytes);
  return answer;
}

PyObject* finish_feed(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    if (!may_feed(self)) return nullptr;
    if (auto* session = session_of(self)) session->finish_feed(*self->op);
    Py_RETURN_NONE;
  });
}

PyObject* fail_feed(PyObject* object, PyObject* reason) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(reason, &size);
    if (text == nullptr || !may_feed(self)) return nullptr;
    const std::string_view all(text, static_cast<std::size_t>(size));
    constexpr std::size_t longest = 1000;
    if (auto* session = session_of(self))
      session->fail_feed(*self->op, all.substr(0, std::min(all.find('\0'), longest)));
    Py_RETURN_NONE;
  });
}

std::string take_all(operation_object* self) {
  return self->driver != nullptr ? self->driver->session->take_data(*self->op) : std::exchange(self->op->data, {});
}

PyObject* take_data(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = operation_of(object);
    if (!is_copy(*self->op, kind::copy_out)) return nullptr;
    const auto data = take_all(self);
    return PyBytes_FromStringAndSize(data.data(), static_cast<Py_ssize_t>(data.size()));
  });
}

PyObject* feeds(PyObject* object, void*) {
  const auto& op = *operation_of(object)->op;
  return PyBool_FromLong(op.feeds() && !op.crowded);
}

PyObject* stopped(PyObject* object, void*) {
  const auto& op = *operation_of(object)->op;
  return PyBool_FromLong(op.feeding == feeding::stopped || (op.done() && op.feeding != feeding::ended));
}

PyObject* copied(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(operation_of(object)->op->copied);
}

// ---- _CopyDecoder

struct copy_decoder {
  PyObject_HEAD operation_object* operation;
  plan_ptr plan;
  std::string data;   // what is before a row is never read, but must be there: a DataRow has 5 bytes more
  std::size_t at;     // of the next row
  std::size_t count;  // records so far
  bool begun;         // the header has been read
  bool ended;         // the trailer has
};

constexpr std::size_t row_lead = 5;  // a DataRow's type byte and length
constexpr std::size_t batch = std::size_t{64} << 10;

copy_decoder* self_of(PyObject* object) {
  return reinterpret_cast<copy_decoder*>(object);
}

bool broken(const copy_decoder* self, const std::string& why) {
  raise_error("DataError", "COPY in the binary format: " + why + ", in record " + std::to_string(self->count + 1));
  return false;
}

// Moves what has come behind what is left.
void fill(copy_decoder* self) {
  const auto more = take_all(self->operation);
  if (more.empty()) return;
  self->data.erase(0, self->at - row_lead);
  self->at = row_lead;
  self->data.append(more);
}

// True with `enough` where the header has been read, false where it is wrong.
bool read_header(copy_decoder* self, bool& enough) {
  constexpr std::size_t signature = 11;
  const std::string_view all(self->data.data() + self->at, self->data.size() - self->at);
  enough = false;
  if (!copy_header.starts_with(all.substr(0, signature)) && !all.starts_with(copy_header.substr(0, signature)))
    return broken(self, "it does not begin with the signature");
  if (all.size() < copy_header.size()) return true;
  if ((wire::load_uint32(all.data() + signature) & 0xffff0000U) != 0)
    return broken(self, "a flag that is not understood");
  const auto extension = wire::load_int32(all.data() + signature + 4);
  constexpr std::int32_t longest = 1 << 20;
  if (extension < 0 || extension > longest) return broken(self, "a header extension of a wrong length");
  if (all.size() < copy_header.size() + static_cast<std::size_t>(extension)) return true;
  self->at += copy_header.size() + static_cast<std::size_t>(extension);
  return enough = self->begun = true;
}

// The size of the row at hand, 0 where it isn't all here. False where it is wrong.
bool row_size(copy_decoder* self, std::size_t& size) {
  const char* const start = self->data.data() + self->at;
  const char* const end = self->data.data() + self->data.size();
  size = 0;
  if (end - start < 2) return true;
  const auto fields = wire::load_int16(start);
  if (fields == -1) {
    self->ended = true;
    self->at += 2;
    return end - start == 2 || broken(self, "data behind the trailer");
  }
  if (static_cast<std::size_t>(fields) != self->plan->steps.size() || fields < 0)
    return broken(self, std::to_string(fields) + " fields where " + std::to_string(self->plan->steps.size()) +
                            " columns were described");
  const char* p = start + 2;
  for (auto left = fields; left > 0; --left) {
    if (end - p < 4) return true;
    const auto length = wire::load_int32(p);
    p += 4;
    if (length < -1) return broken(self, "a negative field length");
    if (length < 0) continue;
    if (end - p < length) return true;
    p += length;
  }
  size = static_cast<std::size_t>(p - start);
  return true;
}

bool find_columns(copy_decoder* self) {
  if (self->plan) return true;
  const auto& results = self->operation->op->results;
  if (results.empty() || !results.front().columns) {
    raise_interface_error("the columns of this COPY were not described");
    return false;
  }
  for (const auto& column : results.front().columns->columns) {
    if (column.format == 1) continue;
    raise_interface_error("column \"" + column.name +
                          "\" is of a type that is not decoded from binary: select it with ::text");
    return false;
  }
  self->plan = find_plan(results.front().columns, false);
  return self->plan != nullptr;
}

bool take_rows(copy_decoder* self, PyObject* list) {
  const auto columns = self->operation->op->results.front().columns;
  for (const auto limit = self->at + batch; self->at < limit;) {
    bool enough = self->begun;
    if (!enough && !read_header(self, enough)) return false;
    std::size_t size = 0;
    if (enough && self->ended && self->at < self->data.size()) return broken(self, "data behind the trailer");
    if (enough && !self->ended && !row_size(self, size)) return false;
    if (size == 0) return true;
    auto record = ref::steal(self->plan->row(*columns, self->data.data() + self->at - row_lead, self->count));
    if (!record || PyList_Append(list, record.get()) < 0) return false;
    self->at += size;
    ++self->count;
  }
  return true;
}

PyObject* take_records(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    auto list = ref::steal(PyList_New(0));
    if (!list) return nullptr;
    const auto& results = self->operation->op->results;
    if (!self->plan && (results.empty() || !results.front().columns) && self->operation->op->data.empty())
      return list.release();
    if (!find_columns(self)) return nullptr;
    if (!take_rows(self, list.get())) return nullptr;
    if (PyList_GET_SIZE(list.get()) == 0) {
      fill(self);
      if (!take_rows(self, list.get())) return nullptr;
    }
    return list.release();
  });
}

PyObject* decoder_finish(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!self->ended && !broken(self, "it ends without a trailer")) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* decoder_count(PyObject* object, void*) {
  return PyLong_FromSize_t(self_of(object)->count);
}

PyObject* decoder_make(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* operation = nullptr;
  if (!PyArg_ParseTuple(args, "O!:_CopyDecoder", operation_type(), &operation)) return nullptr;
  if (!is_copy(*operation_of(operation)->op, kind::copy_out)) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* made = type->tp_alloc(type, 0);
    if (made == nullptr) return nullptr;
    auto* self = self_of(made);
    std::construct_at(&self->plan);
    std::construct_at(&self->data, row_lead, '\0');
    self->at = row_lead;
    self->operation = operation_of(Py_NewRef(operation));
    return made;
  });
}

int decoder_traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(as_object(self_of(object)->operation));
  return 0;
}

void decoder_dealloc(PyObject* object) {
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  Py_CLEAR(self->operation);
  std::destroy_at(&self->plan);
  std::destroy_at(&self->data);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef decoder_methods[] = {
    {"take", take_records, METH_NOARGS, "Some of the Records that have come; an empty list where none is whole."},
    {"finish", decoder_finish, METH_NOARGS, "Checks that the end has come."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef decoder_properties[] = {{"count", decoder_count, nullptr, "Records so far.", nullptr},
                                    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot decoder_slots[] = {
    {Py_tp_new, slot(decoder_make)},
    {Py_tp_dealloc, slot(decoder_dealloc)},
    {Py_tp_traverse, slot(decoder_traverse)},
    {Py_tp_methods, decoder_methods},
    {Py_tp_getset, decoder_properties},
    {Py_tp_doc, const_cast<char*>("_CopyDecoder(operation): Records of a COPY in the binary format. Internal.")},
    {0, nullptr}};

PyType_Spec decoder_spec = {"pgpoll.core._CopyDecoder", sizeof(copy_decoder), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, decoder_slots};

}  // namespace

PyMethodDef copy_methods[] = {
    {"feed", feed, METH_O,
     "Data for COPY FROM STDIN. False: no more before it has stirred, for the socket is full; or the server has ended\n"
     "the COPY, see `stopped`."},
    {"finish_feed", finish_feed, METH_NOARGS, "All data has been fed: CopyDone."},
    {"fail_feed", fail_feed, METH_O, "fail_feed(reason): CopyFail; its result will raise the server's QueryCanceled."},
    {"take_data", take_data, METH_NOARGS, "What has come of COPY TO STDOUT: bytes; b'' where nothing has."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef copy_properties[] = {
    {"feeds", feeds, nullptr, "COPY FROM STDIN: whether data may be fed now.", nullptr},
    {"stopped", stopped, nullptr, "COPY FROM STDIN: the server has ended it, or never began it.", nullptr},
    {"copied", copied, nullptr, "Bytes of COPY data that were fed, or have come.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

int register_copying(PyObject* module) {
  if (register_record_encoder(module) < 0) return -1;
  auto type = ref::steal(PyType_FromSpec(&decoder_spec));
  return type ? PyModule_AddObjectRef(module, "_CopyDecoder", type.get()) : -1;
}

}  // namespace pgpoll::py
