"""Send a load to a server and record every request. vLLM's own request function, our own schedule.

`vllm bench serve` keeps no scheduled time: a request that its client sends late looks fast. Here a row has both
scheduled_s and sent_s, so the wait is counted and the client's own lag is in sight.
"""

import asyncio
import importlib.util
import sys
import time
from pathlib import Path

import aiohttp

from quantbench.load import WAKING, WAKING_S, WARM_UP, poisson_offsets, random_prompts, warm_up_requests

REQUEST_LIMIT_S = 1800
# A server closes a connection that was idle for 5 s; to send on it at that moment would fail the request.
KEEP_ALIVE_S = 2
# How long a new server is given requests, so many at once, before anything is timed.
WAKING_AT_ONCE = 4


def request_functions():
    """vLLM's module of request functions, without the 4 s that importing all of vLLM takes: it needs only aiohttp."""
    folder = importlib.util.find_spec("vllm").submodule_search_locations[0]
    path = Path(folder, "benchmarks", "lib", "endpoint_request_func.py")
    spec = importlib.util.spec_from_file_location("quantbench_vllm_requests", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


VLLM = request_functions()


class Client:
    """An HTTP session with one server, for many loads. Use as `async with Client(...) as client`.

    url        http://127.0.0.1:port
    model      the name that the server serves it under
    headers    sent with every request
    token_ids  ids to make prompts of
    """

    def __init__(self, url, model, headers, token_ids):
        self.url, self.model, self.headers, self.token_ids = url, model, headers, token_ids

    async def __aenter__(self):
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=REQUEST_LIMIT_S),
        )
        return self

    async def __aexit__(self, *error):
        await self.session.close()

    async def measure(self, params, fresh=False):
        """Warm up, send the load of a serving point, return its rows in the order of the requests.

        fresh: the server has answered nothing yet, and is warmed up for longer.

        A row: request, scheduled_s, sent_s, first_token_s, finished_s (seconds since the load began; the last two are
        None when it failed), input_tokens, output_tokens, error (None when all went well).
        """
        lengths = params["input_tokens"], params["output_tokens"]
        if fresh:
            await self._wake(lengths, params["seed"])
        warm_up = random_prompts(self.token_ids, lengths[0], warm_up_requests(params), params["seed"], stream=WARM_UP)
        await self._closed_loop(warm_up, lengths[1], params.get("concurrency") or len(warm_up))
        prompts = random_prompts(self.token_ids, lengths[0], params["requests"], params["seed"])
        if params["load"] == "rate":
            offsets_s = poisson_offsets(params["rate_per_s"], params["requests"], params["seed"])
            return await self._open_loop(prompts, lengths[1], offsets_s)
        return await self._closed_loop(prompts, lengths[1], params["concurrency"])

    async def _wake(self, lengths, seed):
        """Send requests that nobody times, for WAKING_S: new processes, server and client alike, get faster that long."""
        began, wave = time.perf_counter(), 0
        while wave == 0 or time.perf_counter() - began < WAKING_S:
            prompts = random_prompts(self.token_ids, lengths[0], WAKING_AT_ONCE, seed + wave, stream=WAKING)
            await self._closed_loop(prompts, lengths[1], WAKING_AT_ONCE)
            wave += 1

    async def _open_loop(self, prompts, output_tokens, offsets_s):
        """Each request goes at its time, whatever became of the ones before it."""
        began = time.perf_counter()
        tasks = []
        for number, (prompt, offset_s) in enumerate(zip(prompts, offsets_s, strict=True)):
            await asyncio.sleep(began + offset_s - time.perf_counter())
            tasks.append(asyncio.ensure_future(self._send(number, prompt, output_tokens, began, offset_s)))
        return await _all(tasks)

    async def _closed_loop(self, prompts, output_tokens, concurrency):
        """`concurrency` users, each of which sends the next request once its last one is answered."""
        began = time.perf_counter()
        waiting = iter(enumerate(prompts))

        async def user():
            # A request is due the moment that its user is free.
            return [
                await self._send(number, prompt, output_tokens, began, time.perf_counter() - began)
                for number, prompt in waiting
            ]

        rows = await _all([asyncio.ensure_future(user()) for _ in range(concurrency)])
        return sorted((row for part in rows for row in part), key=lambda row: row["request"])

    async def _send(self, number, prompt, output_tokens, began, scheduled_s):
        asked = VLLM.RequestFuncInput(
            prompt=prompt,
            api_url=f"{self.url}/v1/completions",
            prompt_len=len(prompt),
            output_len=output_tokens,
            model=self.model,
            ignore_eos=True,
            extra_headers=dict(self.headers),
            extra_body={"temperature": 0.0},
        )
        answer = await VLLM.async_request_openai_completions(asked, self.session)
        error = None
        if not answer.success:
            error = (answer.error.strip().splitlines() or ["failed without a message"])[-1]
        elif answer.output_tokens != output_tokens:
            error = f"asked for {output_tokens} tokens, got {answer.output_tokens}"
        sent_s = answer.start_time - began
        return {
            "request": number,
            "scheduled_s": scheduled_s,
            "sent_s": sent_s,
            "first_token_s": None if error else sent_s + answer.ttft,
            "finished_s": None if error else sent_s + answer.latency,
            "input_tokens": answer.prompt_len,
            "output_tokens": answer.output_tokens,
            "error": error,
        }


async def _all(tasks):
    """Results of all tasks; none of them goes on when this is cancelled."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def first_error(rows):
    """Why a point is invalid, or None: a load with a failed request tells nothing about the others' speed."""
    failed = [row for row in rows if row["error"]]
    if not failed:
        return None
    first = failed[0]
    return f"{len(failed)} of {len(rows)} requests failed; the first, number {first['request']}: {first['error']}"
