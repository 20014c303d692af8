"""safetensors files: the reader returns their tensors, and refuses every other file."""
import json
import os
import struct

import make_checkpoints as make
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2_np import checkpoint
from gpt2_np.checkpoint import CheckpointError, Tensor
from gpt2_np.checkpoint.safetensors import read_safetensors

fuzz = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def write(file, header, data=bytes(8)):
    """Write a file with any header: bytes as they are, anything else as JSON."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_tensor_is_found_at_its_position(file):
    write(file, {"a": A, "__metadata__": {"format": "np"}})
    size = file.stat().st_size
    expected = Tensor(file, "F32", (2,), size - 8, 8)
    assert read_safetensors(file) == {"a": expected}


def test_scalars_and_empty_tensors_are_tensors(file):
    scalar = {"dtype": "U8", "shape": [], "data_offsets": [0, 1]}
    empty = {"dtype": "F32", "shape": [3, 0], "data_offsets": [1, 1]}
    write(file, {"e": empty, "s": scalar}, data=b"x")
    assert read_safetensors(file).keys() == {"s", "e"}


def test_the_order_of_the_header_need_not_be_that_of_the_data(file):
    write(file, {"b": {**A, "data_offsets": [8, 16]}, "a": A}, bytes(16))
    found = read_safetensors(file)
    assert found["b"].start == found["a"].start + 8


def test_blanks_after_the_header_are_allowed(file):
    write(file, json.dumps({"a": A}).encode() + b"   ")
    assert read_safetensors(file).keys() == {"a"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {**A, "dtype": "F31"}}, r"tensor 'a': its dtype is 'F31', expected one of"),
        ({"a": {**A, "dtype": ["F32"]}}, r"its dtype is \['F32'\]"),
        ({"a": {**A, "shape": [3]}}, r"8 bytes, expected 12 for F32 of shape \(3,\)"),
        ({"a": {**A, "shape": [-2]}}, r"its shape is \[-2\]"),
        ({"a": {**A, "shape": [2.0]}}, r"its shape is \[2.0\]"),
        ({"a": {**A, "shape": [True, 2]}}, r"its shape is \[True, 2\]"),
        ({"a": {**A, "shape": 2}}, "its shape is 2"),
        ({"a": {**A, "shape": [2**62, 2**62]}}, "expected 850705917302346158658436518579"),
        ({"a": {**A, "shape": [10**30]}}, "its shape is"),
        ({"a": {**A, "shape": [1] * 10**5}}, "100000 axes, expected at most 8"),
        ({"a": {**A, "data_offsets": [8, 0]}}, r"data_offsets are \[8, 0\]"),
        ({"a": {**A, "data_offsets": [0]}}, r"data_offsets are \[0\]"),
        ({"a": {**A, "data_offsets": [0, "8"]}}, r"data_offsets are \[0, '8'\]"),
        ({"a": {**A, "data_offsets": None}}, "data_offsets are None"),
        ({"a": {**A, "data_offsets": [1, 9]}}, r"tensor 'a' begins at byte \d+, expected \d+"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "expected dtype, shape and data_offsets"),
        ({"a": {**A, "more": 1}}, "expected dtype, shape and data_offsets"),
        ({"a": [1]}, r"tensor 'a': found \[1\]"),
        ({"a": A, "b": A}, "begins at byte"),  # the same bytes twice
        ({"a": A, "b": {**A, "data_offsets": [4, 12]}}, "begins at byte"),  # overlapping
        ({"a": A, "b": {**A, "data_offsets": [9, 17]}}, "begins at byte"),  # a hole
        ({"a": A, "b": {**A, "data_offsets": [8, 16]}}, r"has \d+ bytes, expected"),  # outside
        ({}, r"has \d+ bytes, expected"),  # data of no tensor
        ({"a": A, "__metadata__": {"x": 1}}, "__metadata__"),
        ({"a": A, "__metadata__": ["x"]}, "__metadata__"),
        (b'{"a":1,"a":2}', "the key 'a' appears twice"),
        (b'{"a":{"shape":1,"shape":2}}', "the key 'shape' appears twice"),
        (b'{"a":NaN}', "NaN, which JSON does not allow"),
        (b'{"a":-Infinity}', "-Infinity, which JSON does not allow"),
        (b'{"a":' + b"9" * 5000 + b"}", "is not a whole safetensors file"),
        (b'{"a":' * 100_000, "is not a whole safetensors file"),
        (b'{"a":' + b"[" * 100_000, "is not a whole safetensors file"),
        (b'{"a":"\xff"}', "is not a whole safetensors file"),
        (b'["a"]', r"begins with b'\['"),
        (b' {"a":1}', "begins with b' '"),
        (b"\xef\xbb\xbf{}", "begins with"),
        (b'{"a":1', "is not a whole safetensors file"),
        (b"{} {}", "is not a whole safetensors file"),
        (b"", "header has 0 bytes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_against_the_rules_is_refused(file, header, message):
    write(file, header)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_safetensors(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [10**8 + 1, 2**40, 2**63, 2**64 - 1, 1])
def test_an_absurd_header_length_is_refused_before_anything_is_read(file, length):
    with open(file, "wb") as opened:
        opened.write(struct.pack("<Q", length) + b"{}")
        opened.truncate(10**8 + 10**6)  # a sparse file
    with pytest.raises(CheckpointError, match=f"header has {length} bytes, expected at most"):
        read_safetensors(file)


def test_a_name_that_cannot_be_printed_is_still_a_printable_error(file):
    write(file, b'{"\\ud800\\u001b[31m' + b"x" * 10**5 + b'":1}')
    with pytest.raises(CheckpointError) as caught:
        read_safetensors(file)
    assert str(caught.value).isascii() and str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    params = make.write_hugging_face(folder, tokenizer=False)
    return folder, params, (folder / "model.safetensors").read_bytes()


def test_a_file_cut_anywhere_is_refused(sound):
    folder, _, content = sound
    cut = folder / "cut.safetensors"
    cut.write_bytes(content)
    for size in [len(content) - 1, *range(len(content) - 37, 30, -37), *range(30, -1, -1)]:
        os.truncate(cut, size)
        with pytest.raises(CheckpointError, match=r"cut\.safetensors is not a whole"):
            read_safetensors(cut)


@fuzz
@given(st.data())
def test_a_file_with_a_changed_header_is_read_right_or_refused(sound, data):
    folder, params, content = sound
    damaged = bytearray(content)
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at, n = data.draw(st.integers(0, end - 1)), data.draw(st.integers(0, 8))
        piece = st.binary(max_size=8) | st.sampled_from([b"[", b"]", b"{", b"}", b",", b"0", b'"'])
        damaged[at : at + n] = data.draw(piece)
    (folder / "model.safetensors").write_bytes(damaged)
    try:
        model = checkpoint.load(folder)
    except CheckpointError as error:
        assert len(str(error)) < 2000
    else:
        make.assert_same_params(model.params, params)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "x"]) | json_values,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2) | json_values,
    }
)


@fuzz
@given(st.dictionaries(st.text(max_size=3), entries | json_values, max_size=3), st.binary())
def test_any_json_as_header_gives_tensors_inside_the_file_or_an_error(sound, header, data):
    file = sound[0] / "any.safetensors"
    write(file, header, data)
    try:
        tensors = read_safetensors(file)
    except CheckpointError:
        return
    assert sum(tensor.size for tensor in tensors.values()) == len(data)
    for tensor in tensors.values():
        assert 8 <= tensor.start <= tensor.start + tensor.size <= file.stat().st_size
