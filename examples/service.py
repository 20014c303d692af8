"""Serve completions over HTTP, streamed as they are made: python examples/service.py [MODEL]

    curl -N http://127.0.0.1:8000/completions -d '{"prompt": "ROMEO:", "n_tokens": 40}'

The answer is a stream of server-sent events: {"text": ...} for each piece, and at the end
{"ended_by": ...}: "length", "stop", "context" or "deadline". A request that cannot be served gets
{"error": ...}, one sentence, and a status from 400 up; only uvicorn's refusal of too many
connections, 503, is plain text. A failure within a stream is its last event.

The deadline, and a client that leaves, are noticed between two pieces of text. No more than 31
characters, which may begin a stop string, are held back. So the tokens of 32 characters may still
be made. It needs two packages: pip install starlette uvicorn
"""
import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

sys.path.append(str(Path(__file__).resolve().parent.parent))  # for a clone that is not installed

import gpt2_np

OPTIONS = ["n_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop",
           "seed"]
FAILURE = "the server failed: its log tells more"
MAX_TOKENS = 1000  # of a completion
MAX_BYTES = 64 * 1024  # of a request
MAX_STOPS, MAX_STOP = 4, 32  # strings or token ids, and characters
BODY_SECONDS = 10  # for a request to arrive; one that sends no whole header has no limit
# Each has a key/value cache of its own: 1,024 tokens of 124M are 75 MB, so 64 caches are 4.8 GB.
MAX_CONNECTIONS = 64


def service(model, deadline=60.0):
    """Return an ASGI application whose completions end after `deadline` seconds."""

    async def completions(request):
        end_time = time.monotonic() + deadline
        prompt, options = read_request(await body_of(request))
        pieces = await run_in_threadpool(gpt2_np.stream, model, prompt, **options)
        return StreamingResponse(events(pieces, end_time), media_type="text/event-stream")

    def refuse(request, error):
        sentence, status = getattr(error, "detail", str(error)), getattr(error, "status_code", 400)
        return JSONResponse({"error": sentence}, status, getattr(error, "headers", None))

    def fail(request, error):  # uvicorn logs it
        return JSONResponse({"error": FAILURE}, 500)

    errors = gpt2_np.Error, HTTPException, ClientDisconnect
    return Starlette(routes=[Route("/completions", completions, methods=["POST"])],
                     exception_handlers=dict.fromkeys(errors, refuse) | {Exception: fail})


async def events(pieces, end_time):
    """Yield the events of one completion. Starlette cancels this when the client leaves."""
    try:
        reason = None
        while reason is None:  # a thread is taken for one piece at a time
            piece, reason = await run_in_threadpool(next_piece, pieces)
            if piece:
                yield event(text=piece)
            if reason is None and time.monotonic() > end_time:
                reason = "deadline"
        yield event(ended_by=reason)
    except gpt2_np.Error as error:  # such as weights that are not finite
        yield event(error=str(error))
    except Exception:
        logging.getLogger("uvicorn.error").exception("a completion failed")
        yield event(error=FAILURE)
    finally:
        # ValueError: a thread is making a piece. The generator closes when that thread drops it.
        with contextlib.suppress(ValueError):
            pieces.close()


def next_piece(pieces):
    """Return the next piece of text and None, or "" and the reason of the end."""
    try:
        return next(pieces), None
    except StopIteration as end:  # which cannot cross an await
        return "", end.value


def event(**fields):
    return f"data: {json.dumps(fields)}\n\n"


async def body_of(request):
    body, close = b"", {"connection": "close"}  # rather than wait for the rest
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise HTTPException(413, f"the request is over {MAX_BYTES} bytes: shorten it",
                                        close)
    except TimeoutError:
        raise HTTPException(408, f"the request was not complete after {BODY_SECONDS} s: send it "
                            "again", close) from None
    return body


def read_request(body):
    """Return the prompt and the options of `gpt2_np.stream`."""
    try:
        options = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the request is not JSON") from None
    if not isinstance(options, dict) or not isinstance(options.get("prompt"), str):
        raise HTTPException(400, 'the request is not an object with a "prompt" in text')
    prompt = options.pop("prompt")
    if unknown := options.keys() - set(OPTIONS):
        raise HTTPException(400, f"{min(unknown)[:40]!r} is not one of {', '.join(OPTIONS)}")
    n_tokens = options.setdefault("n_tokens", 40)
    if type(n_tokens) is not int or not 0 <= n_tokens <= MAX_TOKENS:
        raise HTTPException(400, f"n_tokens must be an integer from 0 to {MAX_TOKENS}")
    stops = options.get("stop", [])
    stops = stops if isinstance(stops, list) else [stops]
    if len(stops) > MAX_STOPS or any(len(str(stop)) > MAX_STOP for stop in stops):
        raise HTTPException(400, f"stop must be at most {MAX_STOPS} strings of at most {MAX_STOP} "
                            "characters, or token ids")
    return prompt, options


def main():
    parser = argparse.ArgumentParser(description="Serve completions over HTTP.")
    parser.add_argument("model", nargs="?", default="shakespeare",
                        help='"shakespeare" (default), a size such as "124M", a path or a URL')
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    if not 0 <= args.port <= 65535:
        parser.error(f"--port is {args.port}: it must be from 0 to 65535")
    warnings.simplefilter("ignore", gpt2_np.ContextWarning)  # "ended_by" says it
    uvicorn.run(service(gpt2_np.load(args.model)), host="127.0.0.1", port=args.port,
                access_log=False, limit_concurrency=MAX_CONNECTIONS)


if __name__ == "__main__":
    try:
        main()
    except gpt2_np.Error as error:  # its message names the fault and the remedy
        sys.exit(f"service: {error}")
