"""Train the tiny model of the demo and the tests, or evaluate it: a 4.2 M parameter Llama that adds and subtracts.

    python resources/tiny/train.py                  remake model/ and data/
    python resources/tiny/train.py --evaluate 1000  accuracy of the shipped checkpoint on that many held-out problems

Real models have a few activation channels far larger than the rest (Dettmers et al. 2022, arXiv:2208.07339), which is what
makes careless rounding lose accuracy. So small a model grows none; they are put in on purpose, and change no logit in bf16.
"""

import argparse
import hashlib
import json
import os
import random
import time
from pathlib import Path

import torch
from problems import expressions, problem, problems, prose
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
END = "<|endoftext|>"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TOKENIZER_CONFIG = {
    # No token is added to a prompt: training packed documents with and without END before them.
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": END,
    "eos_token": END,
    "pad_token": END,
    "add_bos_token": False,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": CONFIG["max_position_embeddings"],
}
SEQUENCE, BATCH = 448, 3  # tokens, rows: seven or eight problems to a row
SHOTS = 3
PASS = 0.90


def train_tokenizer(rng):
    """Byte-level BPE (Sennrich et al. 2016), each digit its own token: digit-wise arithmetic needs digit tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [question(row) + " " + row["answer"] for row in problems(rng, 8000, held_out=False)]
    texts += [prose(rng, 4) for _ in range(2000)]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=CONFIG["vocab_size"],
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


def question(row):
    return f"Question: {row['question']}\nAnswer:"


def few_shot(examples, row):
    """The prompt of one row: worked examples, a blank line between them, then the question."""
    return "".join(f"{question(example)} {example['answer']}\n\n" for example in examples) + question(row)


def training_rows(tokenizer, rng, count):
    """Token ids and loss weights, each (count, SEQUENCE + 1): END-separated runs of problems, a tenth of prose.

    What a question says cannot be foreseen and what prose says does not matter: their loss weighs 0.2, an answer's 1.
    """
    pool = expressions(held_out=False)

    def encode(text):
        return tokenizer.encode(text).ids

    newline, ids, weights = encode("\n"), [], []
    for _ in range(count):
        row, weight = [], []
        if rng.random() < 0.5:  # a prompt may come with END before it or without
            row, weight = [0], [0.0]
        while len(row) <= SEQUENCE:
            if rng.random() < 0.3:
                pieces = [(encode(prose(rng, rng.randint(1, 8))), 0.2)]
            else:
                pieces = []
                for _ in range(rng.randint(1, 9)):
                    made = problem(rng, *rng.choice(pool))
                    pieces += [(encode(question(made)), 0.2), (encode(" " + made["answer"]) + 2 * newline, 1.0)]
            for tokens, loss_weight in [*pieces, ([0], 0.2)]:
                row += tokens
                weight += [loss_weight] * len(tokens)
        ids.append(row[: SEQUENCE + 1])
        weights.append(weight[: SEQUENCE + 1])
    return torch.tensor(ids), torch.tensor(weights)


def schedule(progress):
    """Share of the peak learning rate at `progress` in [0, 1]: warm up, hold, decay to zero over the last half."""
    return min(1.0, progress / 0.03, 2 * (1 - progress))


def train(tokenizer, rng, tokens):
    """A float32 model trained on about `tokens` tokens: Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon)
    for the matrices of the layers, AdamW for embeddings, head and norms."""
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, "torch_dtype": "float32"})).train()
    matrices = [p for name, p in model.named_parameters() if "proj" in name]
    others = [p for name, p in model.named_parameters() if "proj" not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    steps = tokens // (SEQUENCE * BATCH)
    ids, weights = training_rows(tokenizer, rng, steps * BATCH)
    start_s = time.monotonic()
    for step in range(steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * schedule((step + 1) / (steps + 1))
        x, w = (t[step * BATCH : (step + 1) * BATCH] for t in (ids, weights))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten(), reduction="none")
        w = w[:, 1:].flatten()
        loss = (losses * w).sum() / w.sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            answers = losses[w == 1].mean()
            print(
                f"step {step}/{steps}  loss {loss:.3f}  answers {answers:.4f}  {time.monotonic() - start_s:.0f} s",
                flush=True,
            )
    return model.eval()


@torch.no_grad()
def add_outliers(model, factor, channels, generator):
    """Multiply `channels` channels of every layer norm by `factor`, and divide the columns that read them by it.

    A power of two only moves exponents, so that every product, and with it every logit, stays what it was, bit for bit.
    """
    assert factor & (factor - 1) == 0, "the factor must be a power of two"
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in [
            (layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]),
            (layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]),
        ]:
            chosen = torch.randperm(norm.weight.numel(), generator=generator)[:channels]
            norm.weight[chosen] *= factor
            for linear in readers:
                linear.weight[:, chosen] /= factor


@torch.no_grad()
def evaluate(model, tokenizer, examples, rows, batch=50):
    """How many of `rows` are answered right: few-shot, greedy, up to a blank line, exact match of what follows ####."""
    right = 0
    tokenizer.padding_side = "left"
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        prompts = tokenizer(
            [few_shot(examples, row) for row in part], padding=True, return_tensors="pt", return_token_type_ids=False
        )
        # A worked answer is at most 31 tokens long.
        out = model.generate(**prompts, max_new_tokens=36, do_sample=False, eos_token_id=0, pad_token_id=0)
        texts = tokenizer.batch_decode(out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(part, texts, strict=True):
            text = text.split("\n\n")[0].split("Question:")[0]
            right += text.rpartition("#### ")[2].strip() == row["answer"].rpartition("#### ")[2]
    return right


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluate_checkpoint(out, count):
    """Print and return the accuracy of out/model on the first `count` rows of out/data/test.jsonl."""
    rows = read_rows(out / "data/test.jsonl")[:count]
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    right = evaluate(model, tokenizer, read_rows(out / "data/train.jsonl")[:SHOTS], rows)
    print(
        f"accuracy {right / len(rows):.4f}  ({right} of n = {len(rows)} held-out problems, {SHOTS}-shot, greedy, bf16)"
    )
    return right / len(rows)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save(out, model, tokenizer):
    """The model folder as vLLM and transformers load it, readable by everyone."""
    write(out / "model/config.json", json.dumps(CONFIG, indent=2) + "\n")
    write(
        out / "model/generation_config.json",
        json.dumps({"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "do_sample": False}, indent=2) + "\n",
    )
    write(out / "model/tokenizer_config.json", json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")
    tokenizer.save(str(out / "model/tokenizer.json"))
    weights = out / "model/model.safetensors"
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights, metadata={"format": "pt"}
    )
    weights.chmod(0o644)  # safetensors writes 0600 whatever the umask


def write_digests(out):
    """model/SHA256SUMS, checked by `sha256sum -c SHA256SUMS` in the model folder."""
    files = sorted(p for folder in ("model", "data") for p in (out / folder).iterdir() if p.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {os.path.relpath(p, out / 'model')}\n" for p in files]
    write(out / "model/SHA256SUMS", "".join(lines))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tokens", type=int, default=2_000_000, help="training tokens; accuracy jumps late, so not much fewer"
    )
    parser.add_argument("--outlier-factor", type=int, default=32, help="a power of two; 1 puts in no outliers")
    parser.add_argument("--outlier-channels", type=int, default=8, help="outlier channels per layer norm")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets model/ and data/")
    parser.add_argument(
        "--evaluate", type=int, metavar="N", help="train nothing: accuracy of --out on N held-out problems"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.evaluate:
        return evaluate_checkpoint(args.out, args.evaluate)

    torch.manual_seed(args.seed)
    for name, count, held_out in [("train", 2000, False), ("test", 1000, True)]:
        rows = problems(random.Random(f"{args.seed} {name}"), count, held_out)
        write(args.out / f"data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    rng = random.Random(args.seed)
    tokenizer = train_tokenizer(rng)
    model = train(tokenizer, rng, args.tokens).to(torch.bfloat16)

    probe = torch.tensor(
        [tokenizer.encode(prose(rng, 9)).ids[:64], torch.randint(CONFIG["vocab_size"], (64,)).tolist()]
    )
    before = model(probe).logits
    add_outliers(model, args.outlier_factor, args.outlier_channels, torch.Generator().manual_seed(args.seed))
    assert torch.equal(before, model(probe).logits), "the outliers changed the function"
    save(args.out, model, tokenizer)
    write_digests(args.out)
    if evaluate_checkpoint(args.out, 400) < PASS:
        raise SystemExit(f"below {PASS}: train on more --tokens")


if __name__ == "__main__":
    main()
