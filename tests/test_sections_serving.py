"""The report's sections on serving, on made-up loads whose answers are known."""

import pytest
from quantbench.sections import Context
from quantbench.sections_serving import load_times, rate_gain, search, serving
from quantbench.tables import build_tables
from synthetic import synthetic_study


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-up")
    manifest = synthetic_study(folder)
    return Context(manifest, build_tables(manifest, folder / "store"))


def test_every_time_of_a_load_has_three_quantiles():
    rows = [
        {"scheduled_s": 0, "sent_s": 0.001, "first_token_s": 0.1 * n, "finished_s": 0.1 * n + 0.3, "output_tokens": 4}
        for n in range(1, 11)
    ]
    found = load_times(rows, 0.95)
    # 0.1 to 1.0 s: the median is between the fifth and the sixth; three tokens in 0.3 s after the first
    assert found["time to first token"][0][0] == pytest.approx(0.55)
    assert [found["per further token (TPOT)"][i][0] for i in range(3)] == pytest.approx([0.1] * 3)
    assert found["whole answer"][0][0] == pytest.approx(0.85)
    # ten requests have no p90 with an interval, and these rows no times between tokens
    assert found["time to first token"][1][1:] == (None, None)
    assert "between tokens (ITL)" not in found


def test_goodput_stands_beside_the_times(context):
    group = serving(context)["groups"][0]
    titles = [panel["title"] for panel in group["panels"]]
    assert "Between tokens (ITL), p99" in titles and titles[-1] == "Goodput"
    (table,) = group["more"]
    assert "90 % of the requests have their first token within 200 ms" in table["note"]
    # the baseline at 2 a second: all 20 requests begin within 50 ms
    assert table["rows"][0][:4] == ["bf16", "2", "100.0 % [83.9 %, 100.0 %]", "yes"]


def test_the_highest_rates_are_brackets_and_so_is_their_gain(context):
    group = search(context)["groups"][0]
    rows = {row[0]: row[1:] for row in group["numbers"]["rows"]}
    assert rows["bf16"][:3] == ["4 requests/s", "5.66 requests/s", "64 tokens/s"]
    assert rows["int8-smoothquant"][:2] == ["8 requests/s", "16 requests/s"]
    # between 8 / 5.66 and 16 / 4
    assert rows["int8-smoothquant"][3] == "2.00× [1.41×, 4.00×]"
    assert group["heading"].startswith("int8-smoothquant meets the SLO at 8 requests/s, bf16 at 4 requests/s")
    assert group["heading"].endswith("at least 1.41× the rate")


def test_an_open_bracket_has_no_end():
    assert rate_gain((4, 5), (8, None)) == (2, 1.6, None)
    assert rate_gain((4, None), (8, 10)) == (2, None, 2.5)
    assert rate_gain((None, 1), (8, 10)) is None and rate_gain((4, 5), (None, 1)) is None
