"""Names and small steps that the tests of downloading share."""
import gpt2_np
from gpt2_np import checkpoint

INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
LARGER = gpt2_np.Config(n_vocab=1500, n_ctx=64, n_embd=128, n_head=2, n_layer=2)  # 2.4 MB
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


def cached(ending):
    """Return the files in the cache with that ending."""
    return sorted(checkpoint.cache_folder().rglob("*" + ending))


def damage(file, at=-100):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
