"""llama.cpp's server without weights that are repacked for this processor: there are
processors (with AMX) on which its build crashes in them."""

import runpy

from llama_cpp import llama_cpp

defaults = llama_cpp.llama_model_default_params


def without_repacking():
    params = defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_model_default_params = without_repacking
runpy.run_module("llama_cpp.server", run_name="__main__")
