"""Send a load to a server and record every request. vLLM's own request function, our own schedule.

`vllm bench serve` keeps no scheduled time: a request that its client sends late looks fast. Here a row has both
scheduled_s and sent_s, so the wait is counted and the client's own lag is in sight.
"""

import asyncio
import importlib.util
import itertools
import sys
import time
from pathlib import Path

import aiohttp

from quantbench.arrivals import due_s
from quantbench.energy import NO_METER
from quantbench.load import WAKING, WAKING_S, WARM_UP, warm_up_requests
from quantbench.token_gaps import histogram

REQUEST_LIMIT_S = 1800
# A server closes a connection that was idle for 5 s; to send on it at that moment would fail the request.
KEEP_ALIVE_S = 2
# How long a new server is given requests, so many at once, before anything is timed.
WAKING_AT_ONCE = 4
# Before a request is due, no longer left to the event loop.
COARSE_S = 0.002


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

    url      http://127.0.0.1:port
    model    the name that the server serves it under
    headers  sent with every request
    prompts  a lengths.Prompts: what is asked
    meter    an EnergyMeter of the server's devices
    energy   its record of the last load; None of one with a ramp, whose energy is not the measured requests' alone
    """

    def __init__(self, url, model, headers, prompts, meter=NO_METER):
        self.url, self.model, self.headers, self.prompts, self.meter = url, model, headers, prompts, meter
        self.energy = None

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
        None when it failed), input_tokens, output_tokens, token_gaps (see token_gaps.py), error (None when all went well).
        Of a ramp only requests that failed have rows; they count down from -1.
        """
        if fresh:
            await self._wake(params)
        warm_up = self.prompts.take(params, warm_up_requests(params), stream=WARM_UP)
        await self._closed_loop(warm_up, params.get("concurrency") or len(warm_up))
        asked = self.prompts.take(params, params["requests"])
        with NO_METER if params.get("ramp_s") else self.meter as window:
            if params["load"] == "concurrency":
                times = {name: params.get(name, 0) for name in ("ramp_s", "least_duration_s")}
                rows = await self._closed_loop(asked, params["concurrency"], **times)
            else:
                rows = await self._open_loop(asked, due_s(params))
        self.energy = window.record
        return [row for row in rows if row["request"] >= 0 or row["error"]]

    async def _wake(self, params):
        """Send requests that nobody times, for WAKING_S: new processes, server and client alike, get faster that long."""
        wave, until = 0, None
        while until is None or time.perf_counter() < until:
            again = params | {"seed": params["seed"] + wave}
            asked = self.prompts.take(again, WAKING_AT_ONCE, stream=WAKING)
            # The first prompts of a file take the time that tokenizing it takes.
            until = until or time.perf_counter() + WAKING_S
            await self._closed_loop(asked, WAKING_AT_ONCE)
            wave += 1

    async def _open_loop(self, asked, offsets_s):
        """Each request goes at its time, whatever became of the ones before it. Those due before 0 are the ramp's."""
        began = time.perf_counter() - min(offsets_s[0], 0)
        ramp = len(offsets_s) - len(asked)
        asked = [*(asked[place % len(asked)] for place in range(ramp)), *asked]
        numbers = [*range(-1, -ramp - 1, -1), *range(len(asked) - ramp)]
        tasks = []
        for number, request, offset_s in zip(numbers, asked, offsets_s, strict=True):
            await _until(began + offset_s)
            tasks.append(asyncio.ensure_future(self._send(number, request, began, offset_s)))
        return await _all(tasks)

    async def _closed_loop(self, asked, concurrency, ramp_s=0, least_duration_s=0):
        """`concurrency` users, each of which sends the next request once its last one is answered.

        They join one after another during ramp_s, and go on until all is sent and least_duration_s has passed: with the
        same requests again, which a server without a prefix cache cannot know.
        """
        began = time.perf_counter() + ramp_s
        numbers, before = itertools.count(), itertools.count(-1, -1)

        async def user(place):
            rows = []
            await _until(began - ramp_s * (1 - place / concurrency))
            while True:
                # A request is due the moment that its user is free. What else is ready to run goes first: by that much
                # this client lags.
                scheduled_s = time.perf_counter() - began
                await asyncio.sleep(0)
                number = next(before if scheduled_s < 0 else numbers)
                if number >= len(asked) and scheduled_s >= least_duration_s:
                    return rows
                rows.append(await self._send(number, asked[number % len(asked)], began, scheduled_s))

        rows = await _all([asyncio.ensure_future(user(place)) for place in range(concurrency)])
        return sorted((row for part in rows for row in part), key=lambda row: row["request"])

    async def _send(self, number, request, began, scheduled_s):
        prompt, output_tokens = request
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
            "token_gaps": None if error else histogram(answer.itl),
            "error": error,
        }


async def _until(when):
    """Sleep until time.perf_counter() is `when`. An event loop rounds up to milliseconds: the last ones are a thread's."""
    await asyncio.sleep(when - time.perf_counter() - COARSE_S)
    if (left_s := when - time.perf_counter()) > 0:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, left_s)


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
