"""Bad input is refused in one message that names the key and what would be valid, before any job."""

import copy
import json

import pytest
from quantbench.errors import UserError
from quantbench.study import load_study

MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}


@pytest.fixture
def config(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL_CONFIG))
    (model / "model.safetensors").write_bytes(b"")
    data = tmp_path / "data"
    data.mkdir()
    for split, rows in (("train", 50), ("test", 20)):
        (data / f"{split}.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n' * rows)
    return {
        "study": "mine",
        "title": "Which?",
        "store": str(tmp_path / "store"),
        "models": [{"name": "small", "source": str(model)}],
        "schemes": ["bf16", "gptq-int4"],
        "gpus": ["cpu"],
        "datasets": [{"name": "sums", "source": str(data)}],
        "calibration": {"dataset": "sums", "samples": 16},
        "latency": {"batch_sizes": [1, 4], "lengths": [{"input_tokens": 64, "output_tokens": 16}]},
        "serving": {"request_rates": [1], "lengths": [{"input_tokens": 64, "output_tokens": 16}]},
        "accuracy": [{"task": "gsm8k", "dataset": "sums", "questions": 20}],
        "perplexity": [{"dataset": "sums", "documents": 10}],
    }


def test_a_valid_config_has_its_defaults_filled_in(config):
    study = load_study(config)
    assert study.config["repeats"]["confidence"] == 0.95
    assert study.config["engine"]["dtype"] == "bfloat16"
    assert study.config["accuracy"][0]["shots"] is None and study.config["accuracy"][0]["fewshot_split"] == "train"
    assert study.datasets["sums"]["config"] == {"splits": {"test": 20, "train": 50}}


# path of the key, its bad value (DROP: left out), what the message has to say
DROP = object()
BAD = {
    "unknown key": (["titel"], "x", ["'titel'", "did you mean 'title'"]),
    "unknown key in a section": (["latency", "batchsizes"], [1], ["latency", "'batchsizes'", "'batch_sizes'"]),
    "unknown key in a list": (["models", 0, "revison"], "x", ["models[0]", "'revison'"]),
    "unknown key in engine": (["engine"], {"dtpye": "float16"}, ["engine", "'dtpye'", "'dtype'"]),
    "missing title": (["title"], DROP, ["'title'", "missing"]),
    "missing model source": (["models", 0, "source"], DROP, ["models[0]", "'source'", "missing"]),
    "text for a list": (["latency", "batch_sizes"], "1,4", ["latency.batch_sizes", "'1,4'", "array"]),
    "text for a number": (["accuracy", 0, "questions"], "200", ["accuracy[0].questions", "'200'", "integer"]),
    "a fraction of a token": (
        ["latency", "lengths", 0, "input_tokens"],
        1.5,
        ["lengths[0].input_tokens", "1.5", "integer"],
    ),
    "a negative length": (
        ["latency", "lengths", 0, "input_tokens"],
        -5,
        ["lengths[0].input_tokens", "-5", "at least 1"],
    ),
    "batch of zero": (["latency", "batch_sizes"], [0], ["latency.batch_sizes[0]", "0", "at least 1"]),
    "rate of zero": (["serving", "request_rates"], [0], ["serving.request_rates[0]", "more than 0"]),
    "confidence of one": (["repeats"], {"confidence": 1.0}, ["repeats.confidence", "less than 1"]),
    "unknown scheme": (["schemes"], ["bf16", "gptq-int5"], ["'gptq-int5'", "did you mean 'gptq-int4'"]),
    "unknown gpu": (["gpus"], ["h20"], ["'h20'", "did you mean 'h200'"]),
    "no name of a task": (["accuracy", 0, "task"], "gsm 8k", ["accuracy[0].task", "'gsm 8k'", "is not a name"]),
    "no file of a task": (["accuracy", 0, "task"], "mine.yaml", ["accuracy[0].task", "no file 'mine.yaml'"]),
    "neither task nor data": (["perplexity", 0], {"documents": 3}, ["perplexity[0]", "task", "dataset"]),
    "a split of a task's own": (
        ["accuracy", 0],
        {"task": "arc_easy", "split": "test"},
        ["accuracy[0].split", "leave it out"],
    ),
    "a template that the model lacks": (
        ["accuracy", 0, "chat_template"],
        True,
        ["accuracy[0].chat_template", "has none"],
    ),
    "texts as long as the context": (
        ["fidelity"],
        [{"dataset": "sums", "documents": 1, "max_tokens": 4096}],
        ["fidelity[0].max_tokens", "4096"],
    ),
    "unknown dtype": (["engine"], {"dtype": "bf16"}, ["engine.dtype", "'bf16'", "'bfloat16'"]),
    "unknown data set": (["accuracy", 0, "dataset"], "sum", ["accuracy[0].dataset", "'sum'", "did you mean 'sums'"]),
    "unknown split": (["perplexity", 0, "split"], "tets", ["perplexity[0]", "'tets'", "did you mean 'test'"]),
    "baseline not measured": (["baseline"], "bf61", ["baseline", "'bf61'", "'bf16'"]),
    "scheme twice": (["schemes"], ["bf16", "bf16"], ["schemes", "'bf16'", "twice"]),
    "gpu twice": (["gpus"], ["cpu", "cpu"], ["gpus", "'cpu'", "twice"]),
    "batch size twice": (["latency", "batch_sizes"], [4, 4], ["latency.batch_sizes", "4", "twice"]),
    "model name twice": (["models"], [{"name": "a", "source": "tiny"}] * 2, ["models", "'a'", "twice"]),
    "no models": (["models"], [], ["models", "empty"]),
    "no schemes": (["schemes"], [], ["schemes", "empty"]),
    "no rates and no concurrencies": (
        ["serving", "request_rates"],
        DROP,
        ["serving", "request_rates or concurrencies"],
    ),
    "rate in words": (["serving", "request_rates"], ["fast"], ["serving.request_rates[0]", "'fast'", "inf"]),
    "rate of YAML's infinity": (["serving", "request_rates"], [float("inf")], ["request_rates[0]", "without a dot"]),
    "unknown workload": (["serving", "workloads"], ["chatt"], ["serving.workloads[0]", "'chatt'", "'chat'"]),
    "an SLO without a limit": (["serving", "slo"], {"share": 0.5}, ["serving.slo", "ttft_s"]),
    "a search without an SLO": (
        ["serving", "search"],
        {"least_rate_per_s": 1, "most_rate_per_s": 8},
        ["serving.search", "serving.slo is missing"],
    ),
    "a search upside down": (
        ["serving", "search"],
        {"least_rate_per_s": 8, "most_rate_per_s": 1},
        ["serving.search.least_rate_per_s", "8 is not below"],
    ),
    "unknown constraint": (["constraints"], {"recover": 0.99}, ["constraints", "'recover'", "did you mean 'recovery'"]),
    "a floor in percent": (
        ["constraints"],
        {"recovery": 99},
        ["constraints.recovery", "99", "at most 1", "0.99 is 99 %"],
    ),
    "unknown contender": (
        ["kernels"],
        {"tokens": [1], "contenders": ["dense-fp23"]},
        ["kernels.contenders", "'dense-fp32'"],
    ),
    "contenders is no list": (["kernels"], {"tokens": [1], "contenders": "some"}, ["kernels.contenders", "'some'"]),
    "unknown shapes": (["kernels"], {"tokens": [1], "shapes": ["llama-3.1-8"]}, ["kernels.shapes", "'llama-3.1-8b'"]),
    "unknown product": (["kernels"], {"tokens": [1], "products": ["relu"]}, ["kernels.products[0]", "'relu_linear'"]),
    "study is no slug": (["study"], "My Study", ["study", "'My Study'", "'my-study'"]),
    "study leaves the store": (["study"], "../elsewhere", ["study", "'../elsewhere'"]),
    "model name with a slash": (["models", 0, "name"], "org/model", ["models[0].name", "'org/model'", "'org-model'"]),
    "beyond the context": (["latency", "lengths", 0, "output_tokens"], 500, ["latency.lengths[0]", "564", "512"]),
    "max_model_len beyond the context": (["engine"], {"max_model_len": 1024}, ["engine.max_model_len", "1024", "512"]),
    "batch beyond max_num_seqs": (["latency", "batch_sizes"], [512], ["latency.batch_sizes", "512", "256"]),
    "more questions than there are": (["accuracy", 0, "questions"], 21, ["accuracy[0].questions", "21", "20 rows"]),
    "more calibration than there is": (["calibration", "samples"], 51, ["calibration.samples", "51", "50 rows"]),
    "no calibration for gptq": (["calibration"], DROP, ["calibration", "missing", "gptq-int4"]),
    "least above most": (["repeats"], {"least": 9, "most": 3}, ["repeats.least", "9", "3"]),
    "no such folder": (["models", 0, "source"], "nowhere", ["models[0].source", "'nowhere'", "config.json"]),
    "no such data set": (["datasets", 0, "source"], "nowhere.jsonl", ["datasets[0].source", "nowhere.jsonl", ".jsonl"]),
    "not a source": (["models", 0, "source"], "https://x.org/m", ["models[0].source", "hf://org/name@revision"]),
    "not a hub source": (["models", 0, "source"], "hf://llama", ["models[0].source", "hf://org/name@revision"]),
    "remote code as text": (["models", 0, "trust_remote_code"], "yes", ["models[0].trust_remote_code", "boolean"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(config, name):
    path, value, says = BAD[name]
    bad = copy.deepcopy(config)
    *parents, last = path
    place = bad
    for part in parents:
        place = place[part]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(UserError) as error:
        load_study(bad)
    for words in says:
        assert words in str(error.value)


def test_constraints_need_what_measures_them(config):
    config["constraints"] = {"recovery": 0.99, "load_per_s": 4}
    assert load_study(config).config["constraints"] == {"recovery": 0.99, "load_per_s": 4}
    del config["accuracy"]
    with pytest.raises(UserError, match="constraints.recovery: section accuracy is missing"):
        load_study(config)


def test_every_fault_is_said_at_once(config):
    config["titel"] = "x"
    config["latency"]["batch_sizes"] = []
    with pytest.raises(UserError, match=r"(?s)titel.*batch_sizes.*empty|batch_sizes.*empty.*titel"):
        load_study(config)


def test_weights_that_are_not_safetensors_are_refused(config, tmp_path):
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"models\[0\].source.*no \*.safetensors"):
        load_study(config)


def test_a_group_that_does_not_divide_a_layer_is_refused(config, tmp_path):
    # 320 = 2 x 128 + 64: groups of 128 leave a remainder in down_proj
    changed = MODEL_CONFIG | {"intermediate_size": 320}
    (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"gptq-int4 does not fit model 'small'.*down_proj"):
        load_study(config)


def test_a_hub_source_is_unstaged_until_it_is_in_the_store(config):
    config["models"][0]["source"] = "hf://org/model@main"
    assert load_study(config).unstaged == [("models", "small")]
