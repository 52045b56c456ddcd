// Arrays <-> nested lists, up to 6 dimensions. Lower bounds are not kept: an array that comes with others than 1 goes
// back with 1. Lists and tuples are taken, all sublists of one level being of one length. In an array of json only the
// outermost list is the array; what is in it are JSON values.
//
// On the wire: Int32 number of dimensions, Int32 whether there are NULLs, Oid of the elements, for each dimension
// Int32 length and Int32 lower bound, then each element's Int32 length and bytes.
#include "py/codecs/codec.hpp"

namespace pgpoll::py {
namespace {

constexpr int most_dimensions = 6;

struct array_reader {
  const char* p;
  const char* end;
  const codec& element;
  int dimensions;
  std::int32_t lengths[most_dimensions];

  std::size_t left() const { return static_cast<std::size_t>(end - p); }

  PyObject* value() {
    if (left() < 4) return bad_value("an array that ends in an element's length");
    const auto size = wire::load_int32(p);
    p += 4;
    if (size == -1) return Py_NewRef(Py_None);
    if (size < 0 || static_cast<std::size_t>(size) > left())
      return bad_value("an array element of %d bytes where %zu are left", size, left());
    const char* data = p;
    p += size;
    return element.decode(data, static_cast<std::size_t>(size), element);
  }

  PyObject* list(int level) {
    auto made = ref::steal(PyList_New(lengths[level]));
    if (!made) return nullptr;
    const bool innermost = level + 1 == dimensions;
    for (std::int32_t i = 0; i < lengths[level]; ++i) {
      PyObject* item = innermost ? value() : list(level + 1);
      if (item == nullptr) return nullptr;
      PyList_SET_ITEM(made.get(), i, item);
    }
    return made.release();
  }
};

struct array_writer {
  encoder& out;
  const codec& element;
  int dimensions = 0;
  Py_ssize_t lengths[most_dimensions] = {};

  static bool is_list(PyObject* value) { return PyList_Check(value) || PyTuple_Check(value); }
  static Py_ssize_t size(PyObject* list) { return PyList_Check(list) ? PyList_GET_SIZE(list) : PyTuple_GET_SIZE(list); }
  static PyObject* item(PyObject* list, Py_ssize_t i) {
    return PyList_Check(list) ? PyList_GET_ITEM(list, i) : PyTuple_GET_ITEM(list, i);
  }

  // The first element of each level tells the dimensions; write() holds the others to them.
  bool measure(PyObject* value) {
    while (is_list(value)) {
      if (dimensions == most_dimensions) return out.refuse("an array has at most 6 dimensions");
      const auto length = size(value);
      if (length > 0x7fffffff) return out.refuse("it is too long for an array");
      lengths[dimensions++] = length;
      if (length == 0) return dimensions == 1 || out.refuse("an empty list inside a list");
      if (is_json(element)) return true;
      value = item(value, 0);
    }
    return true;
  }

  // A caller's code may run at each element and change the list.
  bool write(PyObject* list, int level) {
    const char* uneven = "its lists are not all of one length and depth";
    const bool innermost = level + 1 == dimensions;
    for (Py_ssize_t i = 0; i < lengths[level]; ++i) {
      if (size(list) != lengths[level]) return out.refuse(uneven);
      auto each = ref::borrow(item(list, i));
      if (is_list(each.get()) == innermost && !(innermost && is_json(element))) return out.refuse(uneven);
      if (!(innermost ? out.value(each.get(), element) : write(each.get(), level + 1))) return false;
    }
    return size(list) == lengths[level] || out.refuse(uneven);
  }
};

}  // namespace

PyObject* decode_array(const char* data, std::size_t size, const codec& self) {
  if (size < 12) return bad_value("%zu bytes, but an array has at least 12", size);
  const auto dimensions = wire::load_int32(data);
  const auto flags = wire::load_int32(data + 4);
  const auto oid = wire::load_uint32(data + 8);
  if (dimensions < 0 || dimensions > most_dimensions) return bad_value("an array of %d dimensions", dimensions);
  if (flags != 0 && flags != 1) return bad_value("an array with the flags %d", flags);
  if (oid != self.element->oid) return bad_value("a %s whose elements have the type OID %u", self.name, oid);
  array_reader reader{data + 12, data + size, *self.element, dimensions, {}};
  std::size_t elements = dimensions == 0 ? 0 : 1;
  if (reader.left() < 8 * static_cast<std::size_t>(dimensions))
    return bad_value("an array that ends in its dimensions");
  for (int i = 0; i < dimensions; ++i, reader.p += 8) {
    reader.lengths[i] = wire::load_int32(reader.p);
    if (reader.lengths[i] < 0) return bad_value("an array dimension of %d elements", reader.lengths[i]);
    // Each element takes 4 bytes at least, so this can't overflow: it ends at the first excess.
    elements *= static_cast<std::size_t>(reader.lengths[i]);
    if (elements > size / 4) return bad_value("an array of at least %zu elements in %zu bytes", elements, size);
  }
  if (elements > reader.left() / 4) return bad_value("an array of %zu elements in %zu bytes", elements, size);
  auto made = ref::steal(elements == 0 ? PyList_New(0) : reader.list(0));
  if (made && reader.left() != 0) return bad_value("an array with %zu bytes too many", reader.left());
  return made.release();
}

bool encode_array(encoder& out, PyObject* value, const codec& self) {
  if (!array_writer::is_list(value)) return out.refuse("pass a list");
  array_writer writer{out, *self.element};
  if (!writer.measure(value)) return false;
  const bool empty = writer.lengths[0] == 0;
  out.int32(empty ? 0 : writer.dimensions);
  const auto flags_at = out.size();
  out.uint32(0);
  out.uint32(self.element->oid);
  if (empty) return true;
  for (int i = 0; i < writer.dimensions; ++i) {
    out.int32(static_cast<std::int32_t>(writer.lengths[i]));
    out.int32(1);
  }
  out.null_seen = false;
  if (!writer.write(value, 0)) return false;
  if (out.null_seen) out.patch_uint32(flags_at, 1);
  return true;
}

}  // namespace pgpoll::py
