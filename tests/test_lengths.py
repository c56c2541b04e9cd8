"""lengths.py and workloads.py: requests of different lengths, from a distribution or a file."""

import json
import math
import statistics

import pytest
from quantbench import workloads
from quantbench.errors import UserError
from quantbench.lengths import Prompts, draw_lengths, read_conversations
from quantbench.load import WARM_UP
from quantbench.study import ROOT
from quantbench.validation import nearest

SHIPPED = workloads.load_workloads(ROOT / "config" / "workloads.yaml")
WIDE = {"mean": 200, "sigma": 0.5, "least": 1, "most": 100_000}


def test_lengths_follow_their_lognormal():
    pairs = draw_lengths({"input_tokens": WIDE, "output_tokens": WIDE | {"mean": 50}}, 5000, seed=0)
    for place, mean in ((0, 200), (1, 50)):
        lengths = [pair[place] for pair in pairs]
        # 5000 draws tell the mean to 200 x 0.53 / 71 = 1.5
        assert statistics.mean(lengths) == pytest.approx(mean, rel=0.03)
        # median of a lognormal: mean / exp(sigma^2 / 2) = 0.8825 of the mean
        assert statistics.median(lengths) == pytest.approx(mean * math.exp(-0.125), rel=0.04)


def test_what_is_out_of_bounds_or_does_not_fit_the_context_is_drawn_again():
    narrow = {"input_tokens": WIDE | {"least": 150, "most": 250}, "output_tokens": WIDE | {"most": 180}}
    pairs = draw_lengths(narrow, 400, seed=0, context=320)
    assert {150 <= i <= 250 and 1 <= o <= 180 and i + o <= 320 for i, o in pairs} == {True}
    with pytest.raises(UserError, match="context of 100 tokens"):
        draw_lengths(narrow, 1, seed=0, context=100)


def test_the_seed_alone_decides_the_lengths_and_more_requests_change_none():
    chat = SHIPPED["chat"]
    assert draw_lengths(chat, 20, seed=3, context=2048) == draw_lengths(chat, 50, seed=3, context=2048)[:20]
    assert draw_lengths(chat, 20, seed=3) != draw_lengths(chat, 20, seed=4)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_workloads_fit_a_small_context_and_say_where_they_come_from(name):
    pairs = draw_lengths(SHIPPED[name], 2000, seed=0, context=2048)
    assert max(map(sum, pairs)) <= 2048 and min(map(min, pairs)) >= 4
    # The ends that are cut off move the mean, not the order of magnitude.
    assert statistics.mean(i for i, _ in pairs) == pytest.approx(SHIPPED[name]["input_tokens"]["mean"], rel=0.25)
    assert "Kwon" in SHIPPED[name]["source"]


def test_prompts_of_a_workload_have_the_lengths_drawn():
    prompts, params = Prompts(range(500), context=2048), {"seed": 0, "workload": SHIPPED["chat"]}
    asked = prompts.take(params, 30)
    assert [(len(a.prompt), a.output_tokens) for a in asked] == draw_lengths(SHIPPED["chat"], 30, 0, 2048)
    assert [a.prompt for a in asked] != [a.prompt for a in prompts.take(params, 30, stream=WARM_UP)]


# --- files ----------------------------------------------------------------------------------------------------------


def sharegpt(*turns):
    return [{"id": "x", "conversations": [{"from": "any", "value": value} for value in turn]} for turn in turns]


def test_conversations_of_sharegpt_are_its_first_two_turns(tmp_path):
    path = tmp_path / "ShareGPT_V3.json"
    path.write_text(json.dumps(sharegpt(["Hi, who are you?", "Nobody.", "Oh"], ["alone"])))
    assert read_conversations(path) == [("Hi, who are you?", "Nobody.", None)]


def test_rows_of_your_own_say_how_much_is_generated(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one two", "output_tokens": 5}\n\n{"prompt": "three", "output_tokens": 7}\n')
    assert read_conversations(path) == [("one two", None, 5), ("three", None, 7)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("mine.jsonl", '{"prompt": "one"}', "rows of prompt and output_tokens"),
        ("mine.jsonl", '{"prompt": "one", "output_tokens": "5"}', "line 1"),
        ("chat.json", '[{"text": "one"}]', "ShareGPT"),
        ("chat.json", "not json", "ShareGPT"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as refused:
        read_conversations(tmp_path / name)
    assert says in str(refused.value) and name in str(refused.value)


def test_a_file_that_changed_after_planning_is_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "one", "output_tokens": 5}\n')
    with pytest.raises(UserError, match="has changed"):
        read_conversations(path, digest="0" * 64)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_workload_is_its_numbers_or_its_files_digest(tmp_path):
    path = tmp_path / "My Chat.json"
    path.write_text("[]")
    found = workloads.identities(["chat", str(path)], SHIPPED, lambda _: "d" * 64)
    # Words about it are in no identity.
    assert found["chat"] == {part: SHIPPED["chat"][part] for part in ("input_tokens", "output_tokens")}
    assert found[str(path)] == {"sha256": "d" * 64}
    assert workloads.workload_files(found) == {"d" * 64: str(path)}
    assert workloads.label_of({"workload": found[str(path)]}, found) == "my-chat"
    assert workloads.label_of({"input_tokens": 3}, found) is None


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["chatt"], "workloads[0]: unknown workload 'chatt'; did you mean 'chat'?"),
        (["nowhere.json"], "there is no file 'nowhere.json'"),
        (["chat", "{folder}/chat.jsonl"], "are both called 'chat'"),
    ],
)
def test_names_that_mean_nothing_are_refused(tmp_path, names, says):
    (tmp_path / "chat.jsonl").write_text("")
    names = [name.format(folder=tmp_path) for name in names]
    (fault,) = workloads.faults("workloads", names, SHIPPED, nearest)
    assert says in fault
