"""The workflow with the real engine: what a change costs, counted in points, engine starts and jobs.

One base run; every test then works on a copy of that checkout with its store, so none depends on another.
"""

import os
import re
import shutil

import pytest
import yaml
from workflow_study import Checkout, base_study, needs_environments

pytestmark = [pytest.mark.workflow, needs_environments]

# What is made again when a study's points change but all are in the store.
CHEAP = {"list_points": 1, "build_tables": 1, "render_report": 1, "all": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return base_study(tmp_path_factory)


@pytest.fixture
def checkout(base, tmp_path):
    return base.copy(tmp_path / "quantbench")


def smaller_groups(checkout, scheme):
    """Groups of 64 instead of the 128 that the scheme has from its base."""
    with open(checkout.folder / "config" / "schemes" / f"{scheme}.yaml", "a") as file:
        file.write("format:\n  weights: {group_size: 64}\n")


def files(folder):
    """Every file, but for what Snakemake and Python keep for themselves."""
    hidden = {".snakemake", "__pycache__"}
    return {path for path in folder.rglob("*") if not hidden & set(path.parts)}


# --- the first run ---------------------------------------------------------------------------------------------------


def test_the_first_run_measures_every_point_with_one_engine_and_one_server_per_variant(base):
    # two variants; per variant 1 load, 1 latency, 1 throughput, 1 accuracy, 1 perplexity and 2 serving points, and the
    # distributions of the baseline, which the other is compared with;
    # one probe; per format one question whether the device supports it; gemm: 5 kinds of layer in bf16 and, without
    # the output head, 4 in int4; and the layers of the quantized checkpoint
    assert base.first.stages == {
        "probe": 1, "support": 2, "gemm": 9, "load": 2, "latency": 2, "throughput": 2, "accuracy": 2, "perplexity": 2, "serving": 4,
        "reference": 1, "fidelity": 1, "layers": 1,
    }  # fmt: skip
    variants = ("bf16", "rtn-int4")
    assert base.first.starts == {(rule, s): 1 for rule in ("measure_engine", "measure_serving") for s in variants}
    assert {record["status"] for record in base.first.new.values()} == {"ok"}
    # 4-bit weights differ from the baseline, and not by much
    compared = next(r for r in base.first.new.values() if r["identity"]["stage"] == "fidelity")["rows"]
    assert len(compared) == 4 and all(0 < row["kl_divergence"] / row["tokens"] < 0.5 for row in compared)
    # 4 layers of each kind; the output head and all of bf16 stay in 16 bits
    made = {entry.name for entry in (base.store.root / "checkpoints").iterdir()}
    for identity, [row] in (
        (r["identity"], r["rows"]) for r in base.first.new.values() if r["identity"]["stage"] == "load"
    ):
        kernels = {each["layer_kind"]: (each["count"], each["quantized"]) for each in row["kernels"]}
        quantized = (4, identity["checkpoint"] in made)
        assert kernels == {
            "qkv_proj": quantized, "o_proj": quantized, "gate_up_proj": quantized, "down_proj": quantized,
            "lm_head": (1, False),
        }  # fmt: skip
    assert (base.folder / "reports" / "small.html").stat().st_size > 10_000
    assert base.processes() == []


def test_a_second_run_has_nothing_to_do(checkout):
    run = checkout.done()
    assert run.jobs == {} and run.new == {} and run.runs == {}
    assert "Nothing to be done" in run.text
    # A milestone whose inputs are all in the store is a rule without inputs, which Snakemake always calls run.
    milestones = ("staging", "checkpoints", "kernels", "measurements", "tables", "report")
    assert checkout.done(*milestones).jobs.keys() <= set(milestones)


# --- changes that cost their points ----------------------------------------------------------------------------------


def test_a_batch_size_and_a_question_more_cost_two_points_and_one_engine_start_per_variant(checkout):
    checkout.config["latency"]["batch_sizes"] = [1, 2]
    checkout.config["accuracy"][0]["questions"] = 9
    run = checkout.done()
    assert run.stages == {"latency": 2, "accuracy": 2}
    new = [record["identity"]["params"] for record in run.new.values()]
    assert {p.get("batch_size", p.get("questions")) for p in new} == {2, 9}
    assert run.starts == {("measure_engine", "bf16"): 1, ("measure_engine", "rtn-int4"): 1}
    assert run.jobs == {**CHEAP, "measure_engine": 2}
    assert checkout.done().jobs == {}


def test_a_changed_recipe_costs_its_own_variant(checkout):
    before = {entry.name for entry in (checkout.store.root / "checkpoints").iterdir()}
    smaller_groups(checkout, "rtn-int4")
    run = checkout.done()
    # the int4 format is another one now: its 4 kinds of layer, too
    assert run.stages == {
        "load": 1, "latency": 1, "throughput": 1, "accuracy": 1, "perplexity": 1, "fidelity": 1, "serving": 2, "support": 1, "gemm": 4,
        "layers": 1,
    }  # fmt: skip
    assert run.starts == {("measure_engine", "rtn-int4"): 1, ("measure_serving", "rtn-int4"): 1}
    measured = {"quantize_model": 1, "ask_support": 1, "measure_gemm": 1, "measure_engine": 1, "measure_serving": 1}
    assert run.jobs == {**CHEAP, **measured}
    after = {entry.name for entry in (checkout.store.root / "checkpoints").iterdir()}
    assert len(after - before) == 1 and before < after
    assert {p["identity"]["checkpoint"] for p in run.new.values() if "checkpoint" in p["identity"]} == after - before
    assert checkout.done().jobs == {}


@pytest.mark.parametrize("records", ["kept", "deleted"])
def test_a_point_lost_from_the_store_is_measured_again(checkout, records):
    key, record = next(
        (key, record)
        for key, record in checkout.store.read_points().items()
        if record["identity"]["stage"] == "gemm" and record["identity"]["format"]
    )
    checkout.store.point_path(key).unlink()
    if records == "deleted":
        # Snakemake's own memory: without it, it would take every pointer that exists for current.
        shutil.rmtree(checkout.folder / ".snakemake")
    run = checkout.done()
    assert run.new.keys() == {key}
    assert run.new[key]["identity"] == record["identity"]
    assert run.starts == {}
    jobs = {"measure_gemm": 1, "build_tables": 1, "render_report": 1, "all": 1}
    assert {name: count for name, count in run.jobs.items() if name != "list_points"} == jobs
    assert checkout.done().jobs == {}


def test_two_studies_share_a_store(checkout):
    other = Checkout(checkout.folder, checkout.config | {"study": "other", "schemes": ["bf16"]})
    # bf16's products of one token are there; those of three tokens, for 5 kinds of layer, are not
    other.config["kernels"] = {"tokens": [1, 3]}
    run = other.done()
    assert run.stages == {"gemm": 5} and run.starts == {}
    assert run.jobs == {**CHEAP, "measure_gemm": 1}
    assert (checkout.folder / "reports" / "other.html").exists()
    assert checkout.done().jobs == {}


# --- changes that cost nothing but tables and report -----------------------------------------------------------------


def test_a_rate_less_rebuilds_tables_and_report(checkout):
    del checkout.config["serving"]["request_rates"]
    run = checkout.done()
    assert run.jobs == CHEAP
    assert run.new == {} and run.runs == {}


def test_another_title_renders_the_report_and_nothing_else(checkout):
    checkout.config["title"] = "Is this 'one' the \"best\" {format}; $(touch pwned)?"
    run = checkout.done()
    assert run.jobs == {"render_report": 1, "all": 1}
    assert "best" in (checkout.folder / "reports" / "small.html").read_text()
    assert not (checkout.folder / "pwned").exists()
    assert checkout.done().jobs == {}


def test_a_reordered_config_and_comments_and_touched_files_cost_nothing(checkout):
    lists = {name: checkout.config[name] for name in ("models", "schemes", "datasets")}
    turned = dict(reversed(checkout.config.items())) | lists
    text = "# a comment\n" + yaml.safe_dump(turned, sort_keys=False, default_flow_style=None) + "\n# the end\n"
    for script in ("measure_engine", "measure_serving", "measure_gemm", "probe_gpu", "quantize_model"):
        path = checkout.folder / "workflow/scripts" / f"{script}.py"
        path.write_text(path.read_text() + "# a comment\n")
    for top in ("Snakefile", "config", "envs", "profiles", "resources", "slurm", "workflow"):
        for path in [checkout.folder / top, *(checkout.folder / top).rglob("*")]:
            if path.is_file():
                os.utime(path)
    run = checkout.done(text=text)
    assert run.jobs == {} and "Nothing to be done" in run.text


def test_a_second_clone_with_the_same_store_measures_nothing(checkout, tmp_path):
    store = str(checkout.store.root.resolve())
    clone = Checkout.of_working_tree(tmp_path / "clone", checkout.config | {"store": store})
    run = clone.done()
    assert run.new == {} and run.runs == {}
    assert run.jobs == CHEAP
    assert (clone.folder / "reports" / "small.html").exists()


@pytest.mark.parametrize(
    ("deleted", "jobs"),
    [
        (["results/small/checkpoints/tiny/rtn-int4.json", "results/small/engine"], {}),
        (["results/small/tables"], {"build_tables": 1, "render_report": 1, "all": 1}),
        (["results/small"], CHEAP),
        (["results/small", "reports", ".snakemake"], CHEAP),
    ],
)
def test_what_the_store_can_rebuild_is_not_measured_again(checkout, deleted, jobs):
    for name in deleted:
        path = checkout.folder / name
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run = checkout.done()
    assert run.new == {} and run.runs == {}
    assert run.jobs == jobs


# --- plans, dry runs, refusals: nothing is started --------------------------------------------------------------------


def test_the_plan_names_what_is_missing_and_why(checkout):
    checkout.config["latency"]["batch_sizes"] = [1, 2]
    checkout.config["accuracy"][0]["questions"] = 9
    checkout.config["schemes"].append("int8-online")
    smaller_groups(checkout, "rtn-int4")
    run = checkout.done("plan")
    assert run.jobs == {"plan": 1} and run.new == {} and run.runs == {}
    # of 28 points bf16 loses its accuracy, rtn-int4 its 8, 4 gemms and its support; 2 latencies more; int8-online's 10 are new
    assert "points: 14 of 40 measured, 26 missing" in run.text
    lines = {tuple(line.split()[1:3]): line for line in run.text.splitlines() if " missing: " in line}
    assert "1 missing: new" in lines["tiny/bf16", "latency"]
    assert "1 missing: changed: params.questions 8 -> 9" in lines["tiny/bf16", "accuracy"]
    assert "changed: checkpoint.recipe.format.weights.group_size 128 -> 64" in lines["tiny/rtn-int4", "load"]
    assert "4 missing: changed: format.weights.group_size 128 -> 64" in lines["gemm", "4"]
    assert "1 missing: new" in lines["tiny/int8-online", "load"]
    assert "tiny/rtn-int4: to be quantized" in run.text
    assert "skipped: gemm of tiny/int8-online on cpu: " in run.text
    assert re.search(r"device time on cpu: about \d+\.\d minutes", run.text)


@pytest.mark.parametrize("profile", [[], ["--profile", "slurm"]])
def test_a_dry_run_shows_the_jobs_and_starts_none(checkout, profile):
    checkout.config["latency"]["batch_sizes"] = [1, 2]
    run = checkout.done(*profile, "-n")
    # a dry run prints the jobs it would start
    assert run.jobs == {**CHEAP, "measure_engine": 2}
    assert run.new == {} and run.runs == {}
    if profile:
        assert "slurm_partition=cpu" in run.text and "gres=" not in run.text


def test_a_dry_run_beside_a_run_in_progress_takes_nothing_from_it(checkout):
    checkout.config["latency"]["batch_sizes"] = [1, 2]
    pointer = checkout.results / "engine/cpu/tiny/bf16.json"
    lock = checkout.folder / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("")
    checkout.done("-n")
    assert pointer.exists()
    lock.unlink()
    checkout.done("-n")
    assert not pointer.exists()


def test_an_invalid_config_is_refused_before_anything_is_written(checkout):
    checkout.write_config()
    before = files(checkout.folder)
    checkout.config["latency"]["batch_size"] = checkout.config["latency"].pop("batch_sizes")
    run = checkout.snakemake()
    assert run.returncode != 0 and run.jobs == {}
    assert "latency: unknown key 'batch_size'; did you mean 'batch_sizes'?" in run.text
    assert "Traceback" not in run.text
    assert files(checkout.folder) == before


@pytest.mark.parametrize("target", [[], ["-n"], ["plan"], ["reports/small.html"]])
def test_a_source_that_is_not_staged_stops_everything_with_what_to_do(checkout, target):
    checkout.config["models"].append({"name": "big", "source": "hf://no-such-org/no-such-model@main"})
    run = checkout.snakemake(*target)
    assert run.returncode != 0 and run.jobs == {} and run.new == {}
    assert "not staged yet: 'big' of models" in run.text and "snakemake staging" in run.text
