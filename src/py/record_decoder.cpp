// _RecordDecoder: Records of a COPY TO STDOUT in the binary format (manual, COPY, "Binary Format").
//
// A tuple of that format is laid out as a DataRow's body is, so the plans that decode rows decode these. It may be cut
// anywhere between two CopyData; each row is checked in full before it is decoded.
#include <cstdint>
#include <string>

#include "py/copying.hpp"
#include "py/errors.hpp"
#include "py/operation.hpp"
#include "py/plan.hpp"
#include "wire/bytes.hpp"

namespace pgpoll::py {
namespace {

struct record_decoder {
  PyObject_HEAD operation_object* operation;
  plan_ptr plan;
  std::string data;   // what is before a row is never read, but must be there: a DataRow has 5 bytes more
  std::size_t at;     // of the next row
  std::size_t count;  // records so far
  bool begun;         // the header has been read
  bool ended;         // the trailer has
  bool taking;        // what decodes may do anything: the data stays until it is over
};

constexpr std::size_t row_lead = 5;  // a DataRow's type byte and length
constexpr std::size_t batch = std::size_t{64} << 10;

record_decoder* self_of(PyObject* object) {
  return reinterpret_cast<record_decoder*>(object);
}

bool broken(const record_decoder* self, const std::string& why) {
  raise_error("DataError", "COPY in the binary format: " + why + ", in record " + std::to_string(self->count + 1));
  return false;
}

// Moves what has come behind what is left.
void fill(record_decoder* self) {
  const auto more = take_copied(self->operation);
  if (more.empty()) return;
  self->data.erase(0, self->at - row_lead);
  self->at = row_lead;
  self->data.append(more);
}

// True with `enough` where the header has been read, false where it is wrong.
bool read_header(record_decoder* self, bool& enough) {
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
bool row_size(record_decoder* self, std::size_t& size) {
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

bool find_columns(record_decoder* self) {
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

class taking {
 public:
  explicit taking(record_decoder* self) : self_(self) { self_->taking = true; }
  taking(const taking&) = delete;
  ~taking() { self_->taking = false; }

 private:
  record_decoder* self_;
};

bool take_rows(record_decoder* self, PyObject* list) {
  const auto columns = self->operation->op->results.front().columns;
  const taking during(self);
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
    if (self->taking) return raise_interface_error("its records are being taken");
    if (!check_process(self->operation)) return nullptr;
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

PyObject* finish(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    auto* self = self_of(object);
    if (!self->ended && !broken(self, "it ends without a trailer")) return nullptr;
    Py_RETURN_NONE;
  });
}

PyObject* count_of(PyObject* object, void*) {
  return PyLong_FromSize_t(self_of(object)->count);
}

PyObject* make(PyTypeObject* type, PyObject* args, PyObject*) {
  PyObject* operation = nullptr;
  if (!PyArg_ParseTuple(args, "O!:_RecordDecoder", operation_type(), &operation)) return nullptr;
  if (reinterpret_cast<operation_object*>(operation)->op->kind != core::operation::kind::copy_out)
    return raise_interface_error("only an operation of start_copy_out() has records to take");
  return guarded([&]() -> PyObject* {
    auto* made = type->tp_alloc(type, 0);
    if (made == nullptr) return nullptr;
    auto* self = self_of(made);
    std::construct_at(&self->plan);
    std::construct_at(&self->data, row_lead, '\0');
    self->at = row_lead;
    self->operation = reinterpret_cast<operation_object*>(Py_NewRef(operation));
    return made;
  });
}

int traverse(PyObject* object, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(as_object(self_of(object)->operation));
  return 0;
}

void dealloc(PyObject* object) {
  auto* self = self_of(object);
  PyObject_GC_UnTrack(object);
  Py_CLEAR(self->operation);
  std::destroy_at(&self->plan);
  std::destroy_at(&self->data);
  auto* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

PyMethodDef methods[] = {
    {"take", take_records, METH_NOARGS, "Some of the Records that have come; an empty list where none is whole."},
    {"finish", finish, METH_NOARGS, "Checks that the end has come."},
    {nullptr, nullptr, 0, nullptr}};

PyGetSetDef properties[] = {{"count", count_of, nullptr, "Records so far.", nullptr},
                            {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_new, slot(make)},
    {Py_tp_dealloc, slot(dealloc)},
    {Py_tp_traverse, slot(traverse)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc, const_cast<char*>("_RecordDecoder(operation): Records of a COPY in the binary format. Internal.")},
    {0, nullptr}};

PyType_Spec spec = {"pgpoll.core._RecordDecoder", sizeof(record_decoder), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, slots};

}  // namespace

int register_record_decoder(PyObject* module) {
  auto type = ref::steal(PyType_FromSpec(&spec));
  return type ? PyModule_AddObjectRef(module, "_RecordDecoder", type.get()) : -1;
}

}  // namespace pgpoll::py
