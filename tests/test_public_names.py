"""Every public module lists its names, and a package lists all that it collects."""
import importlib
import inspect

import pytest

import gpt2_np

PACKAGES = ["gpt2_np", "gpt2_np.checkpoint", "gpt2_np.circuits"]  # they collect names of others
MODULES = [*PACKAGES, "gpt2_np.backend", "gpt2_np.bpe", "gpt2_np.circuits.pictures",
           "gpt2_np.gpt2_np"]


@pytest.mark.parametrize("name", MODULES)
def test_a_public_module_has_every_name_that_it_lists(name):
    module = importlib.import_module(name)
    assert set(module.__all__) <= set(dir(module))
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_every_name_that_it_collects(name):
    module = importlib.import_module(name)
    collected = {key for key, value in vars(module).items()
                 if getattr(value, "__module__", "").startswith("gpt2_np")}
    assert len(collected) > 3
    assert collected <= set(module.__all__)


def test_the_tokenizer_and_the_checkpoints_are_reached_from_the_package_alone():
    assert gpt2_np.bpe.Tokenizer and gpt2_np.checkpoint.cache_folder and gpt2_np.backend.pick


@pytest.mark.parametrize("name", MODULES)
def test_a_public_function_has_type_hints_throughout(name):
    module = importlib.import_module(name)
    functions = [value for key in module.__all__
                 if inspect.isfunction(value := getattr(module, key))]
    for function in functions:
        signature = inspect.signature(function)
        assert signature.return_annotation is not signature.empty, function
        assert all(parameter.annotation is not signature.empty
                   for parameter in signature.parameters.values()), function
