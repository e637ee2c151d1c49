// What the files of the border to Python share. The kernels' own structs
// are Python classes of the same names, whose fields are given by name;
// a kernel is a method that takes one of them. Next: module.cpp.
//
// Nothing here is checked, but for what a caller of the whole model gets wrong (own_stack.h);
// moestro/ops/native.py checks. Pointers come as addresses, 0 for null: exchanging an array costs
// more than a small product. Whoever gives an address keeps alive what lies there.

#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <new>
#include <type_traits>

#include "../kernels.h"
#include "../workspace.h"

namespace moestro {

namespace nb = nanobind;

// The kernels of one instruction set, as Python holds them.
struct Library {
  const Kernels& kernels;
};

// What Python has for a field: an address for a pointer, a number for one of an enumeration.
template <class Field>
using Given = std::conditional_t<std::is_pointer_v<Field>, uintptr_t,
                                 std::conditional_t<std::is_enum_v<Field>, int, Field>>;

template <class Field>
Field from_python(const Given<Field>& given) {
  if constexpr (std::is_pointer_v<Field>) {
    return reinterpret_cast<Field>(given);
  } else {
    return static_cast<Field>(given);
  }
}

template <class Field>
Given<Field> to_python(const Field& field) {
  if constexpr (std::is_pointer_v<Field>) {
    return reinterpret_cast<uintptr_t>(field);
  } else {
    return static_cast<Given<Field>>(field);
  }
}

template <class Owner, class Value>
struct Field {
  const char* name;
  Value Owner::*member;
};

template <class Owner, class Value>
Field<Owner, Value> field(const char* name, Value Owner::*member) {
  return {name, member};
}

// A macro, so that a field's name in Python cannot be another's.
#define FIELD(Struct, name) field(#name, &Struct::name)

// Makes a struct a class that is built from all its fields, each by its name: none can be
// forgotten, and none taken for its neighbor. A field may be a base's.
template <class Struct, class... Owners, class... Values>
void bind_struct(nb::module_& m, const char* name, Field<Owners, Values>... fields) {
  nb::class_<Struct> bound(m, name);
  bound.def(
      "__init__",
      [fields...](Struct* self, const Given<Values>&... given) {
        new (self) Struct{};
        ((self->*fields.member = from_python<Values>(given)), ...);
      },
      nb::kw_only(), nb::arg(fields.name)...);
  (bound.def_prop_rw(
       fields.name, [fields](const Struct& self) { return to_python(self.*fields.member); },
       [fields](Struct& self, const Given<Values>& given) {
         self.*fields.member = from_python<Values>(given);
       }),
   ...);
}

// Makes a kernel a method of libraries, on the calling thread's scratch memory.
template <class Result, class Work>
void bind_kernel(nb::class_<Library>& library, const char* name,
                 Result (*Kernels::*kernel)(const Work&, Workspace&, int)) {
  library.def(
      name,
      [kernel](const Library& self, const Work& work, int num_threads) {
        return (self.kernels.*kernel)(work, own_workspace(), num_threads);
      },
      nb::arg("work"), nb::arg("num_threads"), nb::call_guard<nb::gil_scoped_release>());
}

// One for each file beside this one.
void bind_products(nb::module_& m, nb::class_<Library>& library);
void bind_training(nb::module_& m, nb::class_<Library>& library);
void bind_picking(nb::module_& m, nb::class_<Library>& library);
void bind_stack(nb::module_& m);

}  // namespace moestro
