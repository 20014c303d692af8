"""Models with random weights, the same for the same seed."""
import numpy as np

from gpt2_np import Config, Model, parameter_shapes
from gpt2_np.gpt2_np import map_leaves

TINY = Config(n_vocab=61, n_ctx=24, n_embd=20, n_head=4, n_layer=3)


def random_params(config, seed=0, dtype=np.float32, scale=0.02):
    """Return normal weights and biases of the given scale, and gains about 1."""
    rng = np.random.default_rng(seed)

    def make(path, shape):
        array = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return (array + (path[-1] == "g")).astype(dtype)

    return map_leaves(make, parameter_shapes(config))


def random_model(config=TINY, seed=0, scale=0.3, tokenizer=None):
    """Return a model. With scale 0.3 at width 20, logits differ clearly between tokens."""
    return Model(config, random_params(config, seed, scale=scale), tokenizer)


def map_params(function, params):
    """Return the same nested structure with `function` applied to every array."""
    return map_leaves(lambda _, array: function(array), params)
