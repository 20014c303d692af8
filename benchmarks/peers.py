"""Peers: each wraps one library in the same few methods and runs in a process of its own.

`python peers.py serve NAME FOLDER THREADS` loads a model once and answers requests until its input
ends. A request is a line of JSON, such as {"do": "decode", "prompt": [...], "n": 128}. Prompts are
token ids; decoding is greedy. An answer holds the output, for comparison, and the seconds, measured
around the library's own call.
"""
import gc
import itertools
import json
import math
import os
import statistics
import struct
import sys
import threading
import time
from pathlib import Path

now = time.perf_counter


class Peer:
    """The requests of run.py. A peer that lacks a method is left out of that measurement."""

    precision = "float32"  # of the weights and the products; other precisions are marked in tables

    def __init__(self, folder: Path, threads: int):
        raise NotImplementedError

    @staticmethod
    def prepare(folder: Path) -> None:
        """Write the weights in the peer's own format, if it has one, into the same folder."""

    def generate(self, prompt, n, tick, draft=False):
        """Return n token ids that continue the prompt. Call tick() as each becomes known."""
        raise NotImplementedError

    def logits(self, tokens):
        """Return all logits of a text, [position, n_vocab], in the library's own type."""
        raise NotImplementedError("its interface has no such call")

    batch_size = None  # for scoring: the quickest, found in the untimed turn

    def scores(self, texts):
        """Return for each text the sum of log p of its tokens but the first."""
        if self.batch_size is None:
            self.scores_in_batches(texts, 1)
            self.batch_size = min((1, 2, 4, 8), key=lambda size: self.scoring_time(texts, size))
        return self.scores_in_batches(texts, self.batch_size)

    def scoring_time(self, texts, size):
        start = now()
        self.scores_in_batches(texts, size)
        return now() - start

    def scores_in_batches(self, texts, size):
        """Return the scores, computed in padded batches of `size` texts of similar length."""
        raise NotImplementedError("its interface has no such call")

    def generate_batch(self, prompts, n):
        """Return n token ids for each of several prompts of the same length."""
        raise NotImplementedError("its interface has no such call")

    def to_host(self, logits):
        """Return the library's array as a NumPy array."""
        import numpy as np

        return np.asarray(logits)

    # --- requests --------------------------------------------------------------------------

    def decode(self, prompt, n, draft=False):
        ticks = []
        start = now()
        tokens = self.generate(prompt, n, lambda: ticks.append(now()), draft)
        seconds = now() - start
        answer = {"seconds": seconds, "tokens": tokens}
        if ticks:
            steps = [after - before for before, after in itertools.pairwise(ticks)]
            answer |= {"first": ticks[0] - start, "step": statistics.fmean(steps),
                       "median_step": statistics.median(steps)}
        return answer

    def prefill(self, tokens):
        start = now()
        logits = self.logits(tokens)
        seconds = now() - start
        rows = self.to_host(logits)[:: max(1, len(tokens) // 8), ::997]
        return {"seconds": seconds, "values": rows.astype(float).ravel().tolist()}

    def score(self, texts):
        start = now()
        sums = self.scores(texts)
        return {"seconds": now() - start, "values": sums}

    def batch(self, prompts, n):
        start = now()
        rows = self.generate_batch(prompts, n)
        return {"seconds": now() - start, "tokens": [token for row in rows for token in row]}

    def memorize(self, tokens, scale=300.0):
        """Make the model continue any beginning of this text with this text.

        Random weights cannot continue code. So the embedding of position p becomes that of token
        p + 1, scaled until it outweighs all that the blocks add. The products stay the same.
        """
        import numpy as np

        wte, wpe = self.embeddings()
        following = wte[np.asarray(tokens[1:])]
        wpe[: len(following)] = following * np.float32(scale / following.std())
        self.set_positions(wpe)
        return {}

    def memory(self):
        """Return the peak of this process in MiB, and the part that is mapped, shareable files."""
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak /= 2**20 if sys.platform == "darwin" else 2**10
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        files = [int(line.split()[1]) / 1024 for line in lines if line.startswith("RssFile")]
        return {"peak_mib": peak, "file_mib": files[0] if files else None}


class Ours(Peer):
    def __init__(self, folder, threads):
        import gpt2_np

        self.library, self.model, self.folder = gpt2_np, gpt2_np.load(folder, "cpu"), folder

    def generate(self, prompt, n, tick, draft=False):
        tokens = []
        for token in self.library.generate(self.model, prompt, n, draft=draft):
            tick()
            tokens.append(token)
        return tokens

    def logits(self, tokens):
        return self.library.forward(self.model.params, self.model.config, tokens)

    def scores(self, texts):
        return [float(row.sum()) for row in self.library.score_batch(self.model, texts)]

    def generate_batch(self, prompts, n):
        return self.library.generate_batch(self.model, prompts, n, draft=False)

    def embeddings(self):
        return self.model.params["wte"], self.model.params["wpe"].copy()

    def set_positions(self, wpe):
        params = {**self.model.params, "wpe": wpe}
        self.model = self.library.Model(self.model.config, params, self.model.tokenizer)

    def matrices(self):
        """Return the matrices of the layers, [in, out], and the embedding, [out, in]."""
        parts = (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj"))
        blocks = self.model.params["blocks"]
        layers = [block[part][name]["w"] for block in blocks for part, name in parts]
        return layers, self.model.params["wte"]

    def products(self, n_rows, repeat):
        """Time the products of one step or prefill alone: a lower bound with this BLAS.
        Each weight matrix is multiplied from its own place in memory, by NumPy's BLAS with its
        threads. The results go to arrays that exist already.
        """
        import numpy as np

        layers, wte = self.matrices()
        widths = {width for w in layers for width in w.shape}
        rows = {width: np.ones((n_rows, width), np.float32) for width in widths}
        outs = {width: np.empty((n_rows, width), np.float32) for width in widths}
        pairs = [(rows[w.shape[0]], w, outs[w.shape[1]]) for w in layers]
        pairs.append((rows[wte.shape[1]], wte.T, np.empty((n_rows, len(wte)), np.float32)))
        if n_rows == 1:
            pairs = [(row[0], w, out[0]) for row, w, out in pairs]

        def step():
            for row, w, out in pairs:
                np.dot(row, w, out=out)

        n_weights = sum(w.size for _, w, _ in pairs)
        return {"seconds": median_time(step, repeat), "operations": 2 * n_rows * n_weights,
                "bytes": 4 * n_weights}

    def stream(self, repeat):
        """Return the bytes a second of one product with the whole checkpoint as a single matrix.

        That is the speed of memory with this BLAS, free of the model's shapes.
        """
        import numpy as np

        path, width = self.folder / "model.safetensors", self.model.config.n_embd
        with path.open("rb") as file:
            header = 8 + struct.unpack("<Q", file.read(8))[0]
        whole = np.memmap(path, np.float32, "r", header).reshape(-1, width)
        row, out = np.ones(width, np.float32), np.empty(len(whole), np.float32)
        return whole.nbytes / median_time(lambda: np.dot(whole, row, out=out), repeat)

    def decode(self, prompt, n, draft=False, limit=False):
        """Decode. With `limit`, time the products alone immediately before and after."""
        before = self.products(1, 12) if limit else {}
        answer = super().decode(prompt, n, draft)
        if limit:
            after = self.products(1, 12)
            answer |= {f"limit_{key}": statistics.fmean((before[key], after[key]))
                       for key in ("seconds", "bytes")}  # fmt: skip
            answer["limit_stream_bytes_per_second"] = self.stream(12)
        return answer

    def prefill(self, tokens, limit=False):
        answer = super().prefill(tokens)
        if limit:
            products = self.products(len(tokens), 1)
            answer |= {f"limit_{key}": products[key] for key in ("seconds", "operations")}
        return answer


def median_time(function, repeat):
    times = []
    function()
    for _ in range(repeat):
        start = now()
        function()
        times.append(now() - start)
    return statistics.median(times)


class Transformers(Peer):
    def __init__(self, folder, threads):
        import torch
        from transformers import GPT2LMHeadModel, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(self, prompt, n, tick, draft=False):
        options = {"prompt_lookup_num_tokens": 10} if draft else {}
        return self.continued([prompt], n, streamer=Ticker(tick), **options)[0]

    def continued(self, prompts, n, **options):
        ids = self.torch.tensor(prompts)
        rows = self.model.generate(ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=n,
                                   do_sample=False, eos_token_id=None,
                                   pad_token_id=0, **options)
        return rows[:, len(prompts[0]) :].tolist()

    def logits(self, tokens):
        return self.model(self.torch.tensor([tokens]), use_cache=False).logits[0]

    def generate_batch(self, prompts, n):
        return self.continued(prompts, n)

    def scores_in_batches(self, texts, size):
        torch, sums = self.torch, [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            longest = len(texts[chosen[-1]])
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            labels = torch.full_like(ids, -100)
            for row, i in enumerate(chosen):
                ids[row, : len(texts[i])] = labels[row, : len(texts[i])] = torch.tensor(texts[i])
            # A causal model needs no mask for padding on the right: no position attends to it.
            logits = self.model(ids[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
            for i, total in zip(chosen, loss.view(len(chosen), -1).sum(1).tolist(), strict=True):
                sums[i] = -total
        return sums

    def embeddings(self):
        transformer = self.model.transformer
        return (transformer.wte.weight.numpy(), transformer.wpe.weight.numpy().copy())

    def set_positions(self, wpe):
        self.model.transformer.wpe.weight.copy_(self.torch.from_numpy(wpe))


class Ticker:
    """A streamer for transformers that calls tick() for every new token."""

    def __init__(self, tick):
        self.tick, self.has_prompt = tick, False

    def put(self, tokens):  # the prompt first, then new tokens: several after a draft
        for _ in range(tokens.numel() if self.has_prompt else 0):
            self.tick()
        self.has_prompt = True

    def end(self):
        pass


class CTranslate2(Peer):
    quantization = "float32"

    def __init__(self, folder, threads):
        import ctranslate2

        self.model = ctranslate2.Generator(str(folder / self.folder()), device="cpu",
                                           inter_threads=1, intra_threads=threads)
        ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        self.words = sorted(ids, key=ids.get)

    @classmethod
    def folder(cls):
        return f"ctranslate2-{cls.quantization}"

    @classmethod
    def prepare(cls, folder):
        from ctranslate2.converters import TransformersConverter

        TransformersConverter(str(folder)).convert(
            str(folder / cls.folder()), quantization=cls.quantization, force=True)

    def generate(self, prompt, n, tick, draft=False):
        if draft:
            raise NotImplementedError("its interface has no such call")
        return self.continued([prompt], n, callback=lambda _: tick())[0]

    def continued(self, prompts, n, **options):
        results = self.model.generate_batch(
            [[self.words[token] for token in prompt] for prompt in prompts], max_length=n,
            min_length=n, sampling_topk=1, include_prompt_in_result=False, **options)
        return [result.sequences_ids[0] for result in results]

    def generate_batch(self, prompts, n):
        return self.continued(prompts, n)

    def logits(self, tokens):
        return self.model.forward_batch([tokens])

    def to_host(self, logits):
        return super().to_host(logits)[0]

    def scores_in_batches(self, texts, size):  # the library sorts them by length itself
        rows = self.model.score_batch(
            [[self.words[token] for token in text] for text in texts], max_batch_size=size)
        return [math.fsum(row.log_probs) for row in rows]


class CTranslate2Int8(CTranslate2):
    precision = quantization = "int8"


class OnnxRuntime(Peer):
    """ONNX Runtime on transformers' GPT-2 as exported by torch.onnx.export.

    Two graphs, each with the weights. One gives all logits of a text. The other takes the keys and
    values so far, and returns them extended, with the logits of the last position.
    """

    def __init__(self, folder, threads):
        import onnxruntime

        self.library, self.folder, self.logits_model = onnxruntime, folder, None
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1
        self.model = self.session("step")
        config = json.loads((folder / "config.json").read_text())
        self.head = config["n_head"], config["n_embd"] // config["n_head"]

    def session(self, name):
        file = str(self.folder / "onnx" / f"{name}.onnx")
        return self.library.InferenceSession(file, self.options, ["CPUExecutionProvider"])

    @classmethod
    def prepare(cls, folder):
        import torch
        from transformers import DynamicCache, GPT2LMHeadModel

        class Logits(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.gpt2 = model

            def forward(self, tokens):
                return self.gpt2(input_ids=tokens, use_cache=False).logits

        class Step(Logits):
            def forward(self, tokens, past):
                cache = DynamicCache(list(past))
                output = self.gpt2(input_ids=tokens, past_key_values=cache, use_cache=True)
                return output.logits[:, -1], [(layer.keys, layer.values) for layer in cache.layers]

        torch.set_grad_enabled(False)
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        layers, heads = range(model.config.n_layer), model.config.n_head
        (folder / "onnx").mkdir(exist_ok=True)
        tokens, any_size = torch.zeros(2, 3, dtype=torch.long), torch.export.Dim.DYNAMIC
        # Every input is an array of its own, or the export merges them into one.
        past = [tuple(torch.randn(2, 2, heads, 7, model.config.n_embd // heads)) for _ in layers]

        def export(kind, name, inputs, names, outputs, shapes):
            torch.onnx.export(kind().eval(), inputs, folder / "onnx" / f"{name}.onnx",
                              input_names=names, output_names=outputs, dynamic_shapes=shapes,
                              dynamo=True, external_data=True, verbose=False)

        both = {0: any_size, 1: any_size}  # batch, position
        export(Logits, "logits", (tokens,), ["tokens"], ["logits"], {"tokens": both})
        inputs, outputs = ([f"{kind}.{i}.{array}" for i in layers for array in "kv"]
                           for kind in ("past", "new"))  # fmt: skip
        growing = {0: any_size, 2: any_size}
        export(Step, "step", (tokens, past), ["tokens", *inputs], ["logits", *outputs],
               {"tokens": both, "past": [(growing, growing) for _ in layers]})

    def continued(self, prompts, n, tick):
        import numpy as np

        value = self.library.OrtValue.ortvalue_from_numpy
        heads, width = self.head
        names = [graph_input.name for graph_input in self.model.get_inputs()][1:]
        past = [value(np.zeros((len(prompts), heads, 0, width), np.float32)) for _ in names]
        tokens, columns = np.array(prompts, np.int64), []
        for _ in range(n):
            inputs = {"tokens": value(tokens), **dict(zip(names, past, strict=True))}
            logits, *past = self.model.run_with_ort_values(None, inputs)
            tokens = logits.numpy().argmax(-1)[:, None]
            tick()
            columns.append(tokens[:, 0].tolist())
        return [list(row) for row in zip(*columns, strict=True)]

    def generate(self, prompt, n, tick, draft=False):
        return self.continued([prompt], n, tick)[0]

    def generate_batch(self, prompts, n):
        return self.continued(prompts, n, lambda: None)

    def logits(self, tokens):
        import numpy as np

        self.logits_model = self.logits_model or self.session("logits")
        return self.logits_model.run(None, {"tokens": np.array([tokens])})[0][0]


class LlamaCpp(Peer):
    """llama.cpp through llama-cpp-python, compiled here for this processor."""

    kind = "F32"

    def __init__(self, folder, threads):
        import llama_cpp

        cache = {} if self.kind != "F32" else {"type_k": 0, "type_v": 0}  # in float32 as well
        self.options = {"model_path": str(folder / f"{self.kind}.gguf"), "n_ctx": 1024,
                        "n_batch": 1024, "n_ubatch": 1024, "n_threads": threads,
                        "n_threads_batch": threads, "verbose": False, **cache}
        self.library, self.logits_model = llama_cpp, None
        self.model = llama_cpp.Llama(**self.options)

    @classmethod
    def prepare(cls, folder):
        write_gguf(folder, cls.kind)

    def generate(self, prompt, n, tick, draft=False):
        self.model.reset()  # else it reuses the cached prompt of the last request
        tokens = []
        for token in self.model.generate(prompt, temp=0.0):
            tick()
            tokens.append(token)
            if len(tokens) == n:
                return tokens
        return tokens

    def logits(self, tokens):
        if self.logits_model is None:  # only a model with logits_all keeps the rows
            self.logits_model = self.library.Llama(**self.options, logits_all=True)
        self.logits_model.reset()
        self.logits_model.eval(tokens)
        return self.logits_model.scores[: len(tokens)]


class LlamaCppF16(LlamaCpp):
    precision = kind = "F16"


class LlamaCppQ8(LlamaCpp):
    precision = kind = "Q8_0"


def read_weights(folder):
    """Yield (name, float32 array) of every tensor of model.safetensors, memory-mapped."""
    import numpy as np

    path = folder / "model.safetensors"
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = np.memmap(path, np.float32, "r", 8 + size + start, (end - start) // 4)
        yield name, flat.reshape(entry["shape"])


GGUF_NAMES = {
    "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def write_gguf(folder, kind):
    """Write the weights as llama.cpp's own converter lays them out: matrices are [out, in]."""
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    writer = gguf.GGUFWriter(folder / f"{kind}.gguf", "gpt2")
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(ids, key=ids.get))
    writer.add_token_types([1] * (len(ids) - 1) + [3])  # <|endoftext|> is a control token
    writer.add_token_merges([line for line in merges if line])
    dtype = gguf.GGMLQuantizationType[kind]
    for name, array in read_weights(folder):
        *path, leaf = name.split(".")
        prefix = f"blk.{path[1]}." if path[0] == "h" else ""
        layer = ".".join(path[2:] if prefix else path)
        is_matrix = array.ndim == 2 and layer != "wpe"
        array = np.ascontiguousarray(array.T if is_matrix and layer != "wte" else array)
        target = f"{prefix}{GGUF_NAMES[layer]}.{leaf}"
        if is_matrix and kind != "F32":
            writer.add_tensor(target, gguf.quants.quantize(array, dtype), raw_dtype=dtype)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PEERS = {
    "gpt2_np": Ours,
    "transformers": Transformers,
    "CTranslate2": CTranslate2,
    "CTranslate2 int8": CTranslate2Int8,
    "ONNX Runtime": OnnxRuntime,
    "llama.cpp": LlamaCpp,
    "llama.cpp F16": LlamaCppF16,
    "llama.cpp Q8_0": LlamaCppQ8,
}


# --- the process -----------------------------------------------------------------------------


def serve(peer, requests, answers):
    cpu_at_rest = time.process_time()
    for line in requests:
        idle = time.process_time() - cpu_at_rest  # grows if threads spin while others work
        request = json.loads(line)
        gc.collect()
        try:
            answer = getattr(peer, request.pop("do"))(**request) | {"idle_cpu": idle}
        except NotImplementedError as error:
            answer = {"error": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
        print(json.dumps(answer), file=answers, flush=True)
        cpu_at_rest = time.process_time()


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard error, apart from the answers
    job, name, folder, threads = sys.argv[1:]
    peer_class, folder = PEERS[name], Path(folder)
    if job == "prepare":
        peer_class.prepare(folder)
        return
    start = now()
    peer = peer_class(folder, int(threads))
    if job == "cold":  # print an empty line as each token becomes known
        request = json.loads(sys.stdin.readline())
        peer.generate(request["prompt"], request["n"], lambda: print(file=answers, flush=True))
        return
    print(json.dumps({"load": now() - start}), file=answers, flush=True)
    serve(peer, sys.stdin, answers)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0) if threading.active_count() > 1 else None
