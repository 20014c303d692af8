"""The tokenizer of a folder: the files that people have, and those that are refused by name."""
import json
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_checkpoints import SMALL, write_hugging_face, write_tensorflow

import gpt2_np
from gpt2_np import bpe, checkpoint
from gpt2_np.bpe import AddedToken
from gpt2_np.checkpoint import CheckpointError, CheckpointWarning, tokenizer_files
from gpt2_np.checkpoint.added_tokens import order_matters
from gpt2_np.checkpoint.layouts import HUGGING_FACE, TENSORFLOW, Checkpoint
from gpt2_np.checkpoint.saving import write_tokenizer
from gpt2_np.checkpoint.vocabulary import open_tokenizer

WRITERS = [write_tensorflow, write_hugging_face]
END = "<|endoftext|>"
TRAINED = bpe.train("low lower lowest, the cat sat on the mat, naïve café 猫 " * 5, 280)
TEXT = f"the lowest cat{END} naïve <|user|>  [PAD] new\n<s>"


def read(folder):
    return open_tokenizer(Checkpoint(folder, HUGGING_FACE, SMALL, {}))


def write_files(folder, **files):
    """Write merges.txt and vocab.json of TRAINED, and other JSON files by their stems."""
    TRAINED.save(folder, names=("merges.txt", "vocab.json"))
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def tokenizer_json(added=(), post_processor=None, **changes):
    """Return a tokenizer.json of TRAINED. A change is named model__type and so on."""
    merges = [line.split(" ") for line in TRAINED.merges_text().splitlines()[1:]]
    parts = {
        "version": "1.0", "normalizer": None, "post_processor": post_processor,
        "added_tokens": [token(*given) for given in added],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "byte_fallback": False,
                  "continuing_subword_prefix": "", "vocab": TRAINED.all_ids(), "merges": merges},
    }  # fmt: skip
    for name, value in changes.items():
        *outer, last = name.split("__")
        (parts[outer[0]] if outer else parts)[last] = value
    return parts


def token(content, id=None, special=True, **flags):
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags
    return ({} if id is None else {"id": id}) | {"content": content, "special": special} | flags


def alone(folder, parts):
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    return folder


def test_every_file_that_is_read_is_listed():
    assert tokenizer_files(TENSORFLOW) == ("vocab.bpe", "encoder.json")
    assert set(tokenizer_files(HUGGING_FACE)) == {
        "merges.txt", "vocab.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json",
        "special_tokens_map.json"}  # fmt: skip


# --- what loads -----------------------------------------------------------------------------


@pytest.mark.parametrize("as_pairs", [True, False])
def test_one_tokenizer_json_gives_the_tokenizer_of_the_two_files(tmp_path, as_pairs):
    parts = tokenizer_json([(END, 279)])
    if not as_pairs:  # as older files have them
        parts["model"]["merges"] = [" ".join(pair) for pair in parts["model"]["merges"]]
        del parts["model"]["type"]
    tokenizer = read(alone(tmp_path, parts))
    assert tokenizer.encode(TEXT, "all") == TRAINED.encode(TEXT, "all")
    assert (tokenizer.n_vocab, tokenizer.end_of_text) == (280, 279)


def test_added_tokens_of_a_fine_tune_are_found_where_they_are_allowed(tmp_path):
    """added_tokens.json and special_tokens_map.json, as transformers 4 writes them."""
    added = {"<|user|>": 280, "[PAD]": 281, "new": 282}
    special = {"pad_token": "[PAD]", "additional_special_tokens": ["<|user|>"]}
    tokenizer = read(write_files(tmp_path, added_tokens=added, special_tokens_map=special))
    assert tokenizer.special_tokens == {END: 279, "<|user|>": 280, "[PAD]": 281}
    space = TRAINED.encode(" ")
    assert tokenizer.encode("new <|user|>[PAD]", "all") == [282, *space, 280, 281]
    assert tokenizer.encode("new", ()) == [282]  # not special: a word of the vocabulary
    assert tokenizer.encode("[PAD]") == TRAINED.encode("[PAD]")
    assert (tokenizer.n_vocab, tokenizer.decode([280, 282])) == (283, "<|user|>new")


def test_the_settings_name_the_added_tokens_and_their_flags(tmp_path):
    decoder = {"279": token(END), "280": token("<|user|>", lstrip=True, special=False)}
    tokenizer = read(write_files(tmp_path, tokenizer_config={"added_tokens_decoder": decoder}))
    assert tokenizer.added_tokens == (
        AddedToken(END, 279), AddedToken("<|user|>", 280, special=False, lstrip=True))  # fmt: skip
    assert tokenizer.encode("cat  <|user|>") == [*TRAINED.encode("cat"), 280]


def test_a_tokenizer_json_counts_and_the_files_beside_it_do_not(tmp_path):
    write_files(tmp_path, tokenizer=tokenizer_json([(END, 279), ("new", 280, False)]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert read(tmp_path).encode("new the") == [280, *TRAINED.encode(" the")]


def test_special_tokens_may_come_first(tmp_path):
    """As ByteLevelBPETokenizer writes them. Nothing but the class says that one is special."""
    ids = {"<s>": 0, END: 1} | {name: id + 2 for name, id in TRAINED.all_ids().items() if id < 279}
    write_files(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    tokenizer = read(tmp_path)
    assert tokenizer.special_tokens == {END: 1}
    assert tokenizer.encode(f"{END} the", "all") == [1, *(id + 2 for id in TRAINED.encode(" the"))]
    assert tokenizer.encode("<s>", "all") == [id + 2 for id in TRAINED.encode("<s>")]
    assert tokenizer.decode([0]) == "<s>"


def test_a_prefix_space_and_a_token_before_every_text(tmp_path):
    config = {"add_prefix_space": True, "add_bos_token": True}
    tokenizer = read(write_files(tmp_path, tokenizer_config=config))
    assert tokenizer.encode("cat") == [279, *TRAINED.encode(" cat")]
    assert tokenizer.encode(" cat") == [279, *TRAINED.encode(" cat")]


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": END, "type_id": 0}}, {"Sequence": {"id": "A"}}],
    "special_tokens": {END: {"id": END, "ids": [279], "tokens": [END]}},
}
BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": False}


@pytest.mark.parametrize(
    ("post_processor", "ids"),
    [
        (None, []),
        (BYTE_LEVEL, []),
        (TEMPLATE, [279]),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, TEMPLATE]}, [279]),
        ({"type": "Sequence", "processors": [BYTE_LEVEL]}, []),
    ],
)
def test_a_post_processor_puts_tokens_before_a_text(tmp_path, post_processor, ids):
    """With a tokenizer.json, add_bos_token does not count, as in transformers."""
    parts = tokenizer_json([(END, 279)], post_processor)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert read(alone(tmp_path, parts)).encode("cat") == [*ids, *TRAINED.encode("cat")]


def test_a_byte_order_mark_is_skipped(tmp_path):
    write_files(tmp_path)
    file = tmp_path / "vocab.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(tmp_path).encode(TEXT) == TRAINED.encode(TEXT)


# --- what is refused, and how ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "WordPiece"}, "model's type is 'WordPiece'.*has 'BPE'"),
        ({"model__type": None}, "model's type is None"),
        ({"model__byte_fallback": True}, "byte_fallback is True"),
        ({"model__ignore_merges": True}, "ignore_merges is True"),
        ({"model__dropout": 0.1}, "dropout is 0.1"),
        ({"pre_tokenizer__type": "Metaspace"}, "pre_tokenizer's type is 'Metaspace'"),
        ({"pre_tokenizer__use_regex": False}, "use_regex is False"),
        ({"pre_tokenizer": None}, "no pre_tokenizer"),
        ({"normalizer": {"type": "NFC"}}, "normalizer is .*NFC"),
        ({"model__merges": [["a", "zz"]]}, "merge 0 is 'a zz'"),
        ({"model__merges": [1]}, "merges are not all pairs"),
        ({"model__merges": [[1, "a"]]}, "merges are not all pairs"),
        ({"model__merges": None}, "no merges and vocab"),
        ({"model__vocab": {"a": "b"}}, "ids not all integers"),
        ({"model__vocab": {"a": 0}}, "has no id"),
        ({"added_tokens": [{"id": 900, "content": "<x>"}]}, "'<x>' has id 900, .* gives it 280"),
        ({"added_tokens": [3]}, "added token is neither"),
        ({"added_tokens": [{"id": "1", "content": "x"}]}, "no integer as its id"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post_processor is 'RobertaProcess"),
        ({"post_processor": {**TEMPLATE, "single": TEMPLATE["single"][::-1]}}, "other parts than"),
        ({"post_processor": {**TEMPLATE, "special_tokens": {}}}, "other parts than"),
        ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE, TEMPLATE]}}, "other par"),
    ],
)
def test_another_kind_of_tokenizer_json_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json is no.*: .*{message}"):
        read(alone(tmp_path, tokenizer_json(**changes)))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}}, "'LlamaTokenizer', expected"),
        ({"config": {"tokenizer_class": "BertTokenizer"}}, "is 'BertTokenizer', expected GPT2Tok"),
        ({"tokenizer_config": {"tokenizer_class": "TokenizersBackend"}}, "needs tokenizer.json"),
        ({"tokenizer_config": {"split_special_tokens": True}}, "split_special_tokens is set"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["x", None]}}}, "auto_map is set"),
        ({"tokenizer_config": {"model_specific_special_tokens": {"x_token": "the"}}},
         "tokenizer_config.json: model_specific_special_tokens is set"),
        ({"special_tokens_map": {"model_specific_special_tokens": {"x_token": "the"}}},
         "special_tokens_map.json: model_specific_special_tokens is set"),
        ({"tokenizer_config": {"add_eos_token": True}}, "add_eos_token is set"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder is not"),
        ({"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: token("<x>")}}},
         "added_tokens_decoder is not"),
        ({"tokenizer_config": {"additional_special_tokens": "<x>"}}, "expected a list of tokens"),
        ({"tokenizer_config": {"image_token": "<x>"}}, "read the added token '<x>' diff"),
        ({"added_tokens": {"<x>": 300}}, "'<x>' has id 300, but transformers gives it 280"),
        ({"added_tokens": {"<x>": "1"}}, "no integer as its id"),
        ({"added_tokens": {"<x>": 280},
          "special_tokens_map": {"pad_token": token("<x>", rstrip=True)}},
         "differ in lstrip, rstrip, single_word of '<x>'"),
        ({"special_tokens_map": {"pad_token": token(END, lstrip=True)}}, "in one role and none in"),
        ({"tokenizer_config": {"pad_token": "<|end"}}, "overlap"),
        ({"tokenizer": tokenizer_json([(END, 279), ("<x>", 280)]),
          "tokenizer_config": {"added_tokens_decoder": {}}}, "read the added token '<x>' diff"),
        ({"tokenizer": tokenizer_json(pre_tokenizer__add_prefix_space=True),
          "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}}, "make them equal"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_supported_is_refused_by_name(tmp_path, files, message):
    with pytest.raises(CheckpointError, match=message):
        read(write_files(tmp_path, **files))


def test_nested_post_processors_are_refused(tmp_path):
    processor = BYTE_LEVEL
    for _ in range(100):
        processor = {"type": "Sequence", "processors": [processor]}
    with pytest.raises(CheckpointError, match="post_processor is nested more than 50 deep"):
        read(alone(tmp_path, tokenizer_json([(END, 279)], processor)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.removeprefix("#version: 0.2\n"), "put the line '#version: 0.2' before"),
        (lambda text: text.removesuffix("\n"), "end the file with one"),
    ],
)
def test_merges_that_transformers_4_reads_without_one_line_are_refused(tmp_path, change, message):
    write_files(tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_text(change(merges.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


def test_a_private_file_behind_a_link_is_never_quoted(tmp_path):
    secret = tmp_path / "secret"
    for content in ("s3cret\n", "[s3cret]", '{"s3cret": "s3cret"}', '{"added_tokens": ["s3cret"]}'):
        secret.write_text(content)
        for number, name in enumerate(tokenizer_files(HUGGING_FACE)):
            folder = tmp_path / f"{len(content)}-{number}"
            folder.mkdir()
            write_files(folder)
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(secret)
            try:
                read(folder)
            except CheckpointError as error:
                assert "s3cret" not in str(error)


def overlap_or_mind(one, other):
    """The definition of two tokens that interfere, pair by pair."""
    for token, name in ((one, other.name), (other, one.name)):
        if token.single_word and (bpe.in_word(name[0]) or bpe.in_word(name[-1])):
            return True
        if (token.lstrip or token.rstrip) and name != name.strip():
            return True
    a, b = one.name, other.name
    return a in b or b in a or any(
        a.endswith(b[:n]) or b.endswith(a[:n]) for n in range(1, min(len(a), len(b))))


@settings(max_examples=75)
@given(
    st.lists(st.tuples(st.text("ab< ", min_size=1, max_size=4), st.integers(0, 15)), max_size=5),
    st.sets(st.integers(0, 4)),
)
def test_tokens_whose_order_matters_are_found_as_by_comparing_all_pairs(drawn, unsure):
    added = {name: AddedToken(name, 0, True, bits == 1, bits == 2, bits == 3)
             for name, bits in drawn}  # fmt: skip
    unsure = {name for n, name in enumerate(added) if n in unsure}
    pairs = {(a, b) for a in added for b in added if a != b and not unsure.isdisjoint((a, b))
             and overlap_or_mind(added[a], added[b])}  # fmt: skip
    found = order_matters(added, unsure)
    assert found in pairs if pairs else found is None


def test_thousands_of_added_tokens_are_not_compared_pair_by_pair(tmp_path):
    names = [f"<x{i:05}>" for i in range(4_000)]
    config = {"additional_special_tokens": names}
    start = time.process_time()
    assert len(read(write_files(tmp_path, tokenizer_config=config)).added_tokens) == 4_001
    assert time.process_time() - start < 10  # all pairs take minutes


def test_added_tokens_of_endless_names_are_refused(tmp_path):
    config = {"additional_special_tokens": ["<" * 4000, "x"]}
    with pytest.raises(CheckpointError, match="too many to compare"):
        read(write_files(tmp_path, tokenizer_config=config))


PARTS = {
    "merges.txt": TRAINED.merges_text(),
    "vocab.json": json.dumps(TRAINED.all_ids()),
    "tokenizer.json": json.dumps(tokenizer_json([(END, 279), ("new", 280)], TEMPLATE)),
    "tokenizer_config.json": json.dumps({"added_tokens_decoder": {"279": token(END)}, "pad_token":
                                         END, "extra_special_tokens": {}, "add_bos_token": True}),
    "added_tokens.json": json.dumps({"<x>": 280, "new": 281}),
    "special_tokens_map.json": json.dumps({"pad_token": "<x>", "eos_token": token(END)}),
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([END, "<x>", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["content", "id", "type", "single", "279"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=30)
@given(data=st.data())
def test_any_json_loads_or_is_refused_in_one_sentence(tmp_path_factory, data):
    """One value in one file becomes another, or some bytes do."""
    folder = tmp_path_factory.mktemp("fuzzed")
    used = data.draw(st.sets(st.sampled_from(sorted(PARTS)), min_size=1))
    for name in used:
        (folder / name).write_text(PARTS[name], encoding="utf-8")
    name = data.draw(st.sampled_from(sorted(used)))
    content = PARTS[name].encode()
    if name != "merges.txt" and data.draw(st.booleans()):
        value = spot = json.loads(content)
        while isinstance(spot, dict | list) and spot:
            key = data.draw(st.sampled_from(sorted(spot)[:20] if isinstance(spot, dict) else
                                            range(min(len(spot), 3))))  # fmt: skip
            if not isinstance(spot[key], dict | list) or data.draw(st.booleans()):
                spot[key] = data.draw(JSON)
                break
            spot = spot[key]
        content = json.dumps(value).encode()
    else:
        start = data.draw(st.integers(0, len(content)))
        content = content[:start] + data.draw(st.binary(max_size=3)) + content[start + 2 :]
    (folder / name).write_bytes(content)
    try:
        tokenizer = read(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)
        assert "\n" not in str(error) and len(str(error)) < 500 + 3 * len(str(folder))
    else:
        if tokenizer is not None:
            ids = tokenizer.encode(TEXT, "all")
            assert all(0 <= id < tokenizer.n_vocab for id in ids)
            tokenizer.decode(range(tokenizer.n_vocab))


# --- beside a model -------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS)
def test_a_damaged_tokenizer_costs_the_tokenizer_and_not_the_model(tmp_path, write):
    write(tmp_path)
    merges = tmp_path / ("vocab.bpe" if write is write_tensorflow else "merges.txt")
    merges.write_text(merges.read_text() + "one two three\n")
    with pytest.warns(CheckpointWarning, match=rf"{merges.name}.*without a tokenizer") as caught:
        model = checkpoint.load(tmp_path)
    assert caught[0].filename == __file__
    assert model.tokenizer is None and model.n_vocab == SMALL.n_vocab
    assert len(gpt2_np.score(model, [1, 2, 3])) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
@pytest.mark.parametrize("name", tokenizer_files(HUGGING_FACE))
def test_a_pipe_in_place_of_a_tokenizers_file_is_not_opened(tmp_path, name):
    write_hugging_face(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.warns(CheckpointWarning, match=name):
        assert checkpoint.load(tmp_path).tokenizer is None


def test_more_tokens_than_rows_load_and_only_their_use_is_an_error(tmp_path):
    write_hugging_face(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": SMALL.n_vocab}))
    model = checkpoint.load(tmp_path)
    assert (model.tokenizer.n_vocab, model.n_vocab) == (SMALL.n_vocab + 1, SMALL.n_vocab)
    assert len(list(gpt2_np.generate(model, model.tokenizer.encode("to be"), 3))) == 3
    with pytest.raises(gpt2_np.Error, match="280 is outside the vocabulary of 280"):
        gpt2_np.score(model, model.tokenizer.encode("to [PAD]"))


# --- writing --------------------------------------------------------------------------------


def loaded_again(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    write_tokenizer(tokenizer, folder, model_max_length=16)
    return read(folder)


FOLDERS = [
    {},
    {"added_tokens": {"<|user|>": 280, "new": 281}},
    {"tokenizer_config": {"add_prefix_space": True, "add_bos_token": True, "added_tokens_decoder": {
        "279": token(END), "280": token("<|user|>", rstrip=True),
        "281": token("new", special=False)}}},
    {"tokenizer": tokenizer_json([(END, 279), ("<s>", 280)], TEMPLATE)},
]  # fmt: skip


@pytest.mark.parametrize("files", FOLDERS)
def test_a_written_tokenizer_comes_back(tmp_path, files):
    tokenizer = read(write_files(tmp_path, **files))
    again = loaded_again(tokenizer, tmp_path / "again")
    assert again.encode(TEXT, "all") == tokenizer.encode(TEXT, "all")
    assert set(again.added_tokens) == set(tokenizer.added_tokens)
    assert (again.n_vocab, again.start_ids) == (tokenizer.n_vocab, tokenizer.start_ids)
    assert json.loads((tmp_path / "again/tokenizer_config.json").read_text())[
        "model_max_length"] == 16  # fmt: skip


def test_a_tokenizer_that_the_files_cannot_hold_is_not_written(tmp_path):
    first = bpe.Tokenizer.from_parts([], None, [AddedToken("<x>", 256)], start_ids=[0, 256])
    for tokenizer, message in [(first, "start_ids are"), (bpe.Tokenizer([], ["!"]), "rename that")]:
        with pytest.raises(bpe.TokenizerError, match=message):
            write_tokenizer(tokenizer, tmp_path, 16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "spiece.model"])
def test_a_vocabulary_without_merges_is_named(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{name} and no merges.txt"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name", ["merges.txt", "vocab.json", "tokenizer.json", "added_tokens.json"]
)
def test_a_git_lfs_pointer_is_called_one(name, tmp_path):
    write_files(tmp_path)
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\nsize {10**6}\n")
    with pytest.raises(CheckpointError, match=rf"{name} is not .*git-lfs pointer"):
        read(tmp_path)
