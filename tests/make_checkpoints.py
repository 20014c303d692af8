"""Small checkpoints in every layout, written independently of the readers in checkpoint/."""
import functools
import json
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
from random_model import random_params

from gpt2_np import Config, bpe

SMALL = Config(n_vocab=280, n_ctx=8, n_embd=8, n_head=2, n_layer=2)
TEXT = "to be or not to be that is the question whether it is nobler in the mind " * 4


def walk(params, path=()):
    """Yield (path, array) of every parameter."""
    if isinstance(params, dict):
        for key, value in params.items():
            yield from walk(value, (*path, key))
    elif isinstance(params, list):
        for i, value in enumerate(params):
            yield from walk(value, (*path, i))
    else:
        yield path, params


def assert_same_params(found, expected):
    found, expected = dict(walk(found)), dict(walk(expected))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=str(path), strict=True)


# --- TensorFlow's layout ---------------------------------------------------------------------


def tensorflow_tensors(params):
    """Return arrays by the names of the official checkpoints."""
    tensors = {}
    for path, array in walk(params):
        if path[0] == "blocks":
            path = (f"h{path[1]}", *path[2:])
        tensors["model/" + "/".join(path)] = array[None] if path[-1] == "w" else array
    return tensors


@functools.cache
def trained(n_vocab):
    return bpe.train(TEXT, n_vocab)


def write_tensorflow(folder, config=SMALL, seed=0, tokenizer=True, **bundle):
    """Write a checkpoint in OpenAI's layout, and return its parameters."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = random_params(config, seed)
    (folder / "hparams.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    write_bundle(folder, tensorflow_tensors(params), **bundle)
    if tokenizer:
        trained(config.n_vocab).save(folder)
    return params


def write_bundle(folder, tensors, header=None, change=None, prefix="model.ckpt", **table):
    """Write index and data. change(name, entry) may alter an entry, a dict by field number."""
    header = {1: 1, 3: [proto({1: 1})]} if header is None else header
    entries, data = [(b"", proto(header))], b""
    for name, array in sorted(tensors.items()):
        kind, stored = (9, "<i8") if array.dtype == np.int64 else (1, "<f4")
        content = array.astype(stored).tobytes()
        shape = proto({2: [proto({1: n}) for n in array.shape]})
        entry = {1: kind, 2: [shape], 4: len(data), 5: len(content), 6: fixed(mask(crc(content)))}
        if change:
            change(name, entry)
        entries.append((name.encode(), proto(entry)))
        data += content
    (folder / f"{prefix}.data-00000-of-00001").write_bytes(data)
    (folder / f"{prefix}.index").write_bytes(write_table(entries, **table))


NO_ENTRIES = struct.pack("<II", 0, 1)  # TensorFlow's metaindex block: one restart, at 0


def write_table(entries, block_bytes=300, compression=0, damage=lambda block: block,
                metaindex=NO_ENTRIES):
    """Return a LevelDB table. damage(block) may alter a block of entries before its CRC is made."""
    table, index, pending = b"", [], []

    def add(content):
        nonlocal table
        at, checked = len(table), content + bytes([compression])
        table += checked + struct.pack("<I", mask(crc(checked)))
        return varint(at) + varint(len(content))

    for i, (key, value) in enumerate(entries):
        pending.append((key, value))
        if i + 1 == len(entries) or sum(map(len, sum(pending, ()))) > block_bytes:
            index.append((key, add(damage(write_block(pending, 16)))))
            pending = []
    handles = add(metaindex) + add(write_block(index, 1))
    return table + handles.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def write_block(entries, interval, restarts=None):
    block, found, before = b"", [], b""
    for i, (key, value) in enumerate(entries):
        shared = 0
        if i % interval == 0:
            found.append(len(block))
        else:
            while key[: shared + 1] == before[: shared + 1] and shared < len(key):
                shared += 1
        block += varint(shared) + varint(len(key) - shared) + varint(len(value))
        block += key[shared:] + value
        before = key
    restarts = (found or [0]) if restarts is None else restarts
    return block + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


class fixed(int):
    """A number that is written as four bytes."""


def proto(fields):
    """Return a protocol buffer message of numbers, four-byte numbers and lists of bytes."""
    content = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bytes):
                content += varint(number << 3 | 2) + varint(len(one)) + one
            elif isinstance(one, fixed):
                content += varint(number << 3 | 5) + struct.pack("<I", one)
            elif one:
                content += varint(number << 3) + varint(one)
    return content


def varint(value):
    content = b""
    while value > 127:
        content += bytes([value & 127 | 128])
        value >>= 7
    return content + bytes([value])


@functools.cache
def crc(content):
    """Return the CRC-32C, computed one byte after the other."""
    register = 0xFFFFFFFF
    for byte in content:
        register = register >> 8 ^ TABLE[(register ^ byte) & 255]
    return register ^ 0xFFFFFFFF


def after_eight_bits(register):
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


TABLE = [after_eight_bits(byte) for byte in range(256)]


def mask(value):
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- Hugging Face's layout -------------------------------------------------------------------


def hugging_face_tensors(params, prefix=""):
    """Return arrays by their names in model.safetensors."""
    kinds = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    tensors = {}
    for path, array in walk(params):
        middle = (f"h.{path[1]}", *path[2:-1]) if path[0] == "blocks" else path[:-1]
        tensors[prefix + ".".join((*middle, kinds[path[-1]]))] = array
    return tensors


def write_hugging_face(
    folder, config=SMALL, seed=0, tokenizer=True, dtype="F32", prefix="", shards=1, extra=(),
    **settings,
):  # fmt: skip
    """Write a checkpoint in Hugging Face's layout, and return its parameters in float32."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    params = random_params(config, seed)
    sizes = {"vocab_size": config.n_vocab, "n_positions": config.n_ctx, **asdict(config)}
    del sizes["n_vocab"], sizes["n_ctx"]
    known = {"model_type": "gpt2", "activation_function": "gelu_new", "n_inner": None}
    (folder / "config.json").write_text(json.dumps({**known, **sizes, **settings}))
    tensors = {
        name: (dtype, array.shape, encode(array, dtype))
        for name, array in hugging_face_tensors(params, prefix).items()
    } | dict(extra)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        weight_map = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            names = list(tensors)[i::shards]
            write_safetensors(folder / file, {name: tensors[name] for name in names})
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        trained(config.n_vocab).save(folder, names=("merges.txt", "vocab.json"))
    return params


def write_safetensors(file, tensors, header=None, pad=0):
    """Write tensors, (dtype, shape, bytes) by name. `pad` blanks at the header shift the data."""
    entries, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        offsets = [len(data), len(data) + len(content)]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        data += content
    head = json.dumps(entries).encode() if header is None else header
    head += b" " * pad
    Path(file).write_bytes(struct.pack("<Q", len(head)) + head + data)


def encode(array, dtype):
    """Return float32 as the bytes of another type. BF16 is cut off to the upper half."""
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def decoded(array, dtype):
    """Return an array as float32 after `encode` has rounded it."""
    if dtype == "BF16":
        return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return array.astype(np.float16).astype(np.float32) if dtype == "F16" else array
