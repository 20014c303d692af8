"""The models that have a name: the embedded one, and OpenAI's with their addresses and hashes.

One table has every name that people use for one of OpenAI's models, in small letters.

Each file has its bytes and its SHA-256. None means that no figure has been published. Then the size
must agree with the rest of the checkpoint, and the tensors of a bundle with their CRC-32C.
"""
from __future__ import annotations

import os

from .. import bpe
from .bundle import DATA, INDEX
from .layouts import CONFIG, HPARAMS, HUGGING_FACE, TENSORFLOW
from .safetensors import SAFETENSORS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHAKESPEARE = os.path.join(ROOT, "models", "shakespeare")

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
HUB_URL = "https://huggingface.co"

SIZE_BY_NAME = {
    "124m": "124M", "117m": "124M", "gpt2": "124M",
    "355m": "355M", "345m": "355M", "gpt2-medium": "355M",
    "774m": "774M", "762m": "774M", "gpt2-large": "774M",
    "1558m": "1558M", "1542m": "1558M", "1.5b": "1558M", "gpt2-xl": "1558M",
}  # fmt: skip
OWNER = "openai-community"  # of these models on the hub, where they had no owner in earlier years
OTHER_NAMES = {"distilgpt2": "distilbert/distilgpt2"}  # the other GPT-2 that had none

Pins = dict[str, tuple[int | None, str | None]]  # bytes and SHA-256 by file

MERGES, VOCAB = (456318, bpe.OFFICIAL_MERGES), (1042301, bpe.OFFICIAL_IDS)
OPENAI_TOKENIZER: Pins = {TENSORFLOW.merges: MERGES, TENSORFLOW.vocab: VOCAB}
HUB_TOKENIZER: Pins = {HUGGING_FACE.merges: MERGES, HUGGING_FACE.vocab: VOCAB}

OPENAI: dict[str, Pins] = {
    "124M": OPENAI_TOKENIZER | {
        HPARAMS: (90, "d9d56e4121c427164e0c55c6f03c08e1daf9002b9b672825112d19097b680318"),
        INDEX: (5215, "71916f763f9746f9b2a06b12d91996cf1084ae008d0424543d39391c5f2dc687"),
        DATA: (497759232, "2060c885360cc0cf41d7a6dbc4d24b5127aae20260c8b5ae521b5a6578407118"),
    },
    "355M": OPENAI_TOKENIZER | {
        HPARAMS: (91, None), INDEX: (10399, None), DATA: (1419292672, None),
    },
    "774M": OPENAI_TOKENIZER | {
        HPARAMS: (None, None), INDEX: (None, None), DATA: (3096120320, None),
    },
    "1558M": OPENAI_TOKENIZER | {
        HPARAMS: (None, None), INDEX: (None, None), DATA: (6230444800, None),
    },
}  # fmt: skip

HUB: dict[str, tuple[str, str, Pins]] = {  # repository, revision, files
    "124M": ("gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e", HUB_TOKENIZER | {
        CONFIG: (665, "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        SAFETENSORS: (
            548105171, "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"),
    }),
    "355M": ("gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", HUB_TOKENIZER | {
        CONFIG: (718, "ef1a44d889ad1a0acc7731c78134f1b87d2d222f110e97dd10fd4117331caf22"),
        SAFETENSORS: (
            1519984962, "fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd"),
    }),
    "774M": ("gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519", HUB_TOKENIZER | {
        CONFIG: (None, "7fccdcfd6622055342a734c663ee0b61ff4fd697f42467595df0bf4448c8c170"),
        SAFETENSORS: (None, "5f47f3e12f91cd33b662ce7e433b6150ad5512b5884a2cee961b50e9c3bbebce"),
    }),
    "1558M": ("gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2", HUB_TOKENIZER | {
        CONFIG: (None, "be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a"),
        SAFETENSORS: (None, "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a"),
    }),
}  # fmt: skip
