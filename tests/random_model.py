"""Models with random weights, for tests: made on the spot, the same for the same seed."""
import numpy as np

from gpt2_np import Config, Model, parameter_shapes

TINY = Config(n_vocab=61, n_ctx=24, n_embd=20, n_head=4, n_layer=3)


def random_params(config, seed=0, dtype=np.float32, scale=0.02):
    """Normal weights of the given scale; gains about 1, biases as large as the weights."""
    rng = np.random.default_rng(seed)

    def make(shape, name):
        if isinstance(shape, dict):
            return {key: make(inner, key) for key, inner in shape.items()}
        if isinstance(shape, list):
            return [make(inner, name) for inner in shape]
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return (array + (name == "g")).astype(dtype)

    return make(parameter_shapes(config), "")


def random_model(config=TINY, seed=0, scale=0.3, tokenizer=None):
    """Weights of scale 0.3 at width 20 give logits that differ clearly between tokens."""
    return Model(config, random_params(config, seed, scale=scale), tokenizer)


def map_params(function, params):
    """The same nested structure with `function` applied to every array."""
    if isinstance(params, dict):
        return {key: map_params(function, value) for key, value in params.items()}
    if isinstance(params, list):
        return [map_params(function, value) for value in params]
    return function(params)
