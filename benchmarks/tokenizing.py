"""One tokenizer in a fresh process: `python tokenizing.py NAME FOLDER KIND` prints one JSON line.

KIND is a kind of text (texts.KINDS), perhaps followed by " in one piece", or "worst cases", or
"construct". Speeds are bytes of UTF-8 a second, in one thread. Cold is the first pass of a new
tokenizer over a text. Warm is the median of three more passes over the same text: ours and
tokenizers remember words, tiktoken does not. Ours is bpe.py alone, without the package around it,
so NumPy is not imported.
"""
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
now = time.perf_counter
N_CHARS = 1_000_000
WHOLE = " in one piece"  # the suffix of a kind: the whole text in one call
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def ours(merges, ids):
    import bpe

    return bpe.Tokenizer.from_files(merges, ids).encode


def tiktoken(merges, ids):
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    # tiktoken would download its tables. These files hold the same ones.
    os.environ["TIKTOKEN_CACHE_DIR"] = ""
    ranks = data_gym_to_mergeable_bpe_ranks(vocab_bpe_file=merges, encoder_json_file=ids)
    encoding = tiktoken.Encoding("gpt2", pat_str=PATTERN, mergeable_ranks=ranks,
                                 special_tokens={"<|endoftext|>": len(ranks)})
    return encoding.encode_ordinary


def tokenizers(merges, ids):
    import tokenizers

    tokenizer = tokenizers.ByteLevelBPETokenizer(ids, merges, add_prefix_space=False)
    return lambda text: tokenizer.encode(text).ids


TOKENIZERS = {"gpt2_np": ours, "tiktoken": tiktoken, "tokenizers": tokenizers}


def passes(encode, documents, n):
    times = []
    for _ in range(n):
        start = now()
        rows = [encode(document) for document in documents]
        times.append(now() - start)
    return times, hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def measure(name, folder, kind):
    start = now()
    encode = TOKENIZERS[name](str(folder / "merges.txt"), str(folder / "vocab.json"))
    answer = {"construct": now() - start}
    import texts

    if kind == "worst cases":
        for case, length in ((c, n) for c in texts.worst_cases(1) for n in (20_000, 80_000)):
            times, digest = passes(encode, [texts.worst_cases(length)[case]], 1)
            answer[f"{case}, {length}"] = {"seconds": times[0], "ids": digest}
    elif kind != "construct":
        documents = texts.documents(kind.removesuffix(WHOLE), N_CHARS)
        if kind.endswith(WHOLE):
            documents = ["".join(documents)]
        n_bytes = sum(len(document.encode()) for document in documents)
        times, digest = passes(encode, documents, 4)
        answer |= {"cold": n_bytes / times[0], "warm": n_bytes / statistics.median(times[1:]),
                   "ids": digest}
    return answer


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
