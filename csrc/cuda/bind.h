// The bindings files' common ground.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

void bind_rnn(pybind11::module_& m);
