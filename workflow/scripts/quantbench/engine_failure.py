"""Tell what vLLM says cannot work (a result) from a crash (not one). Pure.

Only exact messages of vLLM 0.25.1 and 0.32.0 count, and only in an exception: a traceback that merely has the words
"not supported" in it stays a crash, because a point stored as unsupported is never measured again. Memory that a
neighbour holds ("Free memory on device ... is less than desired") passes, so it is a crash too.
"""

import re

PATTERNS = {
    "unsupported": (
        r"Failed to find a kernel that can implement the",
        r"Forced \w+ kernel \w+ is not supported:",
        r"quantization is currently not supported in",
        r"is not supported for the current GPU\. (Minimum|Required) capability",
        r"is not supported for quantization method",
        r"No compressed-tensors compatible scheme was found",
        r"No \S+ MoE backend supports the deployment configuration",
        r"online quantization requires a Blackwell",
        # A method that this release does not have, and packages that a method needs and the environment has not.
        r"(Unknown|Invalid) quantization method: \w+",
        r"Please install (torchao|bitsandbytes)",
        # torchao's 4-bit weights: packed for CUDA, or in need of a package.
        r"Torch not compiled with CUDA enabled",
        r"Requires mslk",
        r"torchao FP8 activation quantization config '\w+' requires GPU compute capability",
        # An operator that is declared, but that this build of vLLM has no code for.
        r"expected at most 0 argument\(s\) but received \d+ argument\(s\)\. Declaration: _C::\w+\(\) -> \(\)",
    ),
    "out_of_memory": (
        r"(CUDA|HIP|XPU) out of memory",
        r"CUDA error: out of memory",
        r"No available memory for the cache blocks",
        r"larger than the available KV cache memory",
        r"DefaultCPUAllocator: can't allocate memory",
    ),
}
# "(Worker pid=12) ERROR 11-20 21:19:01 [executor.py:953] " before each line that a vLLM process logs
PREFIX = re.compile(r"^(\([^)]*pid=\d+\) )?(ERROR \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] )?")
EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): (.*)")
LONGEST_REASON = 500


def classify_failure(text):
    """(status, reason) of a failed engine start: "unsupported" or "out_of_memory" with vLLM's own words; None: a crash.

    text: a log, a traceback, or the message of an exception.
    """
    for message in _exception_messages(text):
        for status, patterns in PATTERNS.items():
            if any(re.search(pattern, message) for pattern in patterns):
                return status, _tidy(message)
    return None


def last_lines(text, count=20):
    """The last lines of a log that say something, for the message of a crash."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def _exception_messages(text):
    """Each exception's message as one line: with the lines that follow it, where it announces a list."""
    lines = []
    for line in text.splitlines():
        end = PREFIX.match(line).end()
        lines.append((line[:end], line[end:]))
    found = False
    for number, (prefix, line) in enumerate(lines):
        if match := EXCEPTION.match(line):
            found = True
            parts = [match[1]]
            if re.search(r"Reasons: *$|validation errors? for \w+$", match[1]):
                for next_prefix, next_line in lines[number + 1 :]:
                    if next_prefix != prefix or not next_line.strip() or next_line.startswith("Traceback"):
                        break
                    parts.append(next_line)
            yield " ".join(part.strip() for part in parts)
    if not found:
        yield " ".join(text.split())


def _tidy(message):
    message = re.sub(r"^\d+ validation errors? for \w+ (\w+ )?Value error, ", "", message)
    message = re.sub(r" \[type=.*|( Reasons:)? *$", "", message).replace("..", ".")
    return message if len(message) <= LONGEST_REASON else message[: LONGEST_REASON - 1] + "…"
