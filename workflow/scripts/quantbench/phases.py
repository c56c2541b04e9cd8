"""What a batch's time is made of: its prompts, then one step after another. Pure.

`ttft_s` is the time until every sequence of the batch has its first token, which is what computing the prompts (prefill)
takes; what is left of the batch's time is that of the further tokens (decode). Where prompts do not fit one step they are
computed in several, in which sequences whose prompt is done decode already: their first tokens then count as prefill.
"""


def tpot_s(elapsed_s, ttft_s, output_tokens):
    """Time per output token after the first, (elapsed_s - ttft_s) / (output_tokens - 1); None where there is none."""
    if ttft_s is None or output_tokens < 2 or elapsed_s <= ttft_s:
        return None
    return (elapsed_s - ttft_s) / (output_tokens - 1)
