"""A completions server whose speed is known, and the client under test, in one process of the engine environment.

    python -c 'import mock_server; mock_server.main({...})'      prints {"rows", "prompts", "most_at_once", "headers"}

Each answer: the first token after FIRST_S, the others EACH_S apart. `server` in the case changes that: {"stall_at_s",
"stall_s"} lets no token out in that time; request `fails` gets {"short_by"} fewer tokens, or an HTTP {"status"}.
`context`, `files` and `tokenizer` are those of lengths.Prompts.
`client_blocks` = [at_s, for_s] blocks the client's own event loop.
"""

import asyncio
import json
import time

# Long beside what a busy machine adds.
FIRST_S, EACH_S = 0.1, 0.01


def main(case):
    print("REPORT" + json.dumps(asyncio.run(run(case))))


async def run(case):
    from aiohttp import web
    from quantbench.engine.client import Client, first_error
    from quantbench.lengths import Prompts
    from quantbench.load import client_fault

    seen = {"prompts": [], "most_at_once": 0, "headers": [], "bodies": []}
    faults, began, at_once = case.get("server", {}), None, 0

    async def gate():
        stall_at_s, stall_s = faults.get("stall_at_s"), faults.get("stall_s")
        if stall_at_s is not None and stall_at_s <= time.perf_counter() - began < stall_at_s + stall_s:
            await asyncio.sleep(began + stall_at_s + stall_s - time.perf_counter())

    async def completions(request):
        nonlocal at_once, began
        at_once += 1
        body = await request.json()
        number = len(seen["prompts"])
        seen["prompts"].append(body["prompt"])
        seen["bodies"].append({k: v for k, v in body.items() if k != "prompt"})
        seen["headers"].append(request.headers.get("Authorization"))
        seen["most_at_once"] = max(seen["most_at_once"], at_once)
        if number == case["warm_up"]:
            began = time.perf_counter()
        tokens = body["max_tokens"]
        if number == case["warm_up"] + faults.get("fails", -1000):
            if "status" in faults:
                at_once -= 1
                return web.Response(status=faults["status"], reason="made to fail")
            tokens -= faults["short_by"]
        answer = web.StreamResponse()
        await answer.prepare(request)
        for token in range(tokens):
            await asyncio.sleep(EACH_S if token else FIRST_S)
            if began is not None:
                await gate()
            await answer.write(b"data: " + json.dumps({"choices": [{"text": ""}]}).encode() + b"\n\n")
        usage = {"completion_tokens": tokens, "prompt_tokens": len(body["prompt"])}
        await answer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        at_once -= 1
        return answer

    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    headers = {"Authorization": "Bearer a-key"}
    prompts = Prompts(range(3, 500), case.get("context", 2048), case.get("files"), case.get("tokenizer"))
    async with Client(f"http://127.0.0.1:{port}", "model", headers, prompts) as client:
        if block := case.get("client_blocks"):

            async def block_loop():
                while began is None:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(block[0])
                time.sleep(block[1])

            blocker = asyncio.ensure_future(block_loop())
        rows = await client.measure(case["params"], case.get("fresh", False))
        if block:
            await blocker
    await runner.cleanup()
    error = first_error(rows)
    return seen | {"rows": rows, "first_error": error, "client_fault": None if error else client_fault(rows)}
