"""What a batch's time is made of: its prompts, then one step after another. Pure.

`ttft_s` is the time until every sequence of the batch has its first token, which is what computing the prompts (prefill)
takes; what is left of the batch's time is that of the further tokens (decode). Where prompts do not fit one step they are
computed in several, in which sequences whose prompt is done decode already: their first tokens then count as prefill.
"""


def with_tpot(frame):
    """Table `latency` with its tpot_s, (elapsed_s - ttft_s) / (output_tokens - 1): null where there is no further token."""
    import polars

    rest, further = polars.col("elapsed_s") - polars.col("ttft_s"), polars.col("output_tokens") - 1
    return frame.with_columns(tpot_s=polars.when((further > 0) & (rest > 0)).then(rest / further))
