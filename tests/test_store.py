"""The store: a reader sees all of an entry or nothing, whoever writes and however the writer ends."""

import json
import multiprocessing
import os
import stat

import pytest
from quantbench.keys import canonical_json, key
from quantbench.store import Store, write_atomically

IDENTITY = {"stage": "latency", "params": {"batch_size": 1}}
FOLDER = {"artefact": "checkpoint", "model": "m"}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def files(store):
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_a_point_is_kept_under_its_key_with_all_that_was_given(store):
    store.write_point(IDENTITY, status="ok", rows=[{"elapsed_s": 0.5}], run_id="r", measured_s=1.5)
    assert files(store) == [f"points/{key(IDENTITY)[:2]}/{key(IDENTITY)}.json"]
    record = {"identity": IDENTITY, "status": "ok", "reason": None, "rows": [{"elapsed_s": 0.5}], "run_id": "r"}
    assert store.read_point(key(IDENTITY)) == record | {"measured_s": 1.5}
    assert store.read_points() == {key(IDENTITY): record | {"measured_s": 1.5}}
    assert store.has_point(key(IDENTITY))


def test_an_empty_store_has_nothing(store):
    assert store.read_point("ab" * 32) is None
    assert store.read_points() == {} and store.read_runs() == {}
    assert not store.has_point("ab" * 32) and not store.has_folder("checkpoints", "ab" * 32)


@pytest.mark.parametrize(
    ("status", "reason", "says"),
    [("unsupported", None, "needs a reason"), ("invalid", "", "needs a reason"), ("failed", "why", "'failed'")],
)
def test_a_failure_without_a_reason_is_refused_and_leaves_nothing(store, status, reason, says):
    with pytest.raises(ValueError, match=says):
        store.write_point(IDENTITY, status=status, reason=reason, rows=[], run_id="r")
    assert not store.has_point(key(IDENTITY))


def test_not_a_number_is_refused_and_leaves_nothing(store):
    with pytest.raises(ValueError, match="JSON"):
        store.write_point(IDENTITY, status="ok", rows=[{"elapsed_s": float("nan")}], run_id="r")
    assert files(store) == []


def test_runs_are_read_back_by_their_id_and_a_later_write_replaces_the_earlier(store):
    store.write_run({"run_id": "a", "ended_at": None})
    store.write_run({"run_id": "a", "ended_at": "later"})
    assert store.read_runs() == {"a": {"run_id": "a", "ended_at": "later"}}


def _write_often(path, letter, times):
    for _ in range(times):
        write_atomically(path, canonical_json({"text": letter * 200_000}))


def test_a_reader_never_sees_half_an_entry(tmp_path):
    path = tmp_path / "entry.json"
    _write_often(path, "a", 1)
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_often, args=(path, letter, 60)) for letter in "bc"]
    for writer in writers:
        writer.start()
    seen, reads = set(), 0
    while any(writer.is_alive() for writer in writers):
        text = json.loads(path.read_text())["text"]
        assert len(text) == 200_000 and len(set(text)) == 1
        seen.add(text[0])
        reads += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 10 and len(seen) > 1
    assert os.listdir(tmp_path) == ["entry.json"]


def test_a_writer_that_dies_leaves_the_old_entry(tmp_path, monkeypatch):
    path = tmp_path / "entry.json"
    write_atomically(path, "old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["entry.json"]


def test_a_partial_file_of_a_killed_writer_is_no_point(store):
    store.write_point(IDENTITY, status="ok", rows=[], run_id="r")
    path = store.point_path(key(IDENTITY))
    path.with_name(f".{path.name}.0123").write_text('{"identity": ')
    assert store.read_points().keys() == {key(IDENTITY)}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_its_block_ends(store):
    record = {}
    with store.new_folder("checkpoints", FOLDER, record) as folder:
        (folder / "model.safetensors").write_text("weights")
        (folder / "model.safetensors").chmod(0o600)
        record["bytes"] = 7
        assert not store.has_folder("checkpoints", key(FOLDER))
    assert store.has_folder("checkpoints", key(FOLDER))
    assert store.read_folder("checkpoints", key(FOLDER)) == {"identity": FOLDER, "bytes": 7}
    kept = store.folder("checkpoints", key(FOLDER)) / "model.safetensors"
    assert kept.read_text() == "weights"
    # others who share the store can read it
    assert stat.S_IMODE(kept.stat().st_mode) == 0o644
    assert stat.S_IMODE(kept.parent.stat().st_mode) & 0o055 == 0o055


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing(store, end):
    with pytest.raises(end), store.new_folder("checkpoints", FOLDER, {}) as folder:
        (folder / "model.safetensors").write_text("half")
        raise end
    assert files(store) == [] and os.listdir(store.root / "checkpoints") == []
    with store.new_folder("checkpoints", FOLDER, {}):
        pass
    assert store.has_folder("checkpoints", key(FOLDER))


def test_of_two_writers_of_one_folder_the_first_to_end_wins_and_nothing_is_left(store):
    with store.new_folder("checkpoints", FOLDER, {"writer": 1}) as slow:
        (slow / "model.safetensors").write_text("1")
        with store.new_folder("checkpoints", FOLDER, {"writer": 2}) as fast:
            (fast / "model.safetensors").write_text("2")
    assert store.read_folder("checkpoints", key(FOLDER))["writer"] == 2
    assert (store.folder("checkpoints", key(FOLDER)) / "model.safetensors").read_text() == "2"
    assert os.listdir(store.root / "checkpoints") == [key(FOLDER)]


def test_a_folder_that_cannot_be_moved_into_place_is_an_error(store, monkeypatch):
    from pathlib import Path

    rename = Path.rename

    def refuse_folders(self, target):
        if self.is_dir():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_folders)
    with pytest.raises(PermissionError), store.new_folder("checkpoints", FOLDER, {}):
        pass
    assert not store.has_folder("checkpoints", key(FOLDER))


# --- points that several processes have to measure -----------------------------------------------------------------------


def points(*names):
    return [{"key": key({"name": name}), "identity": {"name": name}} for name in names]


def measure(store, group):
    for point in group:
        store.write_point(point["identity"], status="ok", rows=[], run_id="r")


def names(groups):
    return [[point["identity"]["name"] for point in group] for group in groups]


def test_a_point_is_asked_for_right_before_it_is_measured(store):
    left = store.unmeasured([points("a", "b"), points("c"), points("d")])
    assert names([next(left)]) == [["a", "b"]]
    # Another process measures these while this one is at a and b.
    measure(store, points("c"))
    assert names(left) == [["d"]]


def test_two_processes_share_points_and_each_ends_with_all_of_them(store):
    groups = [points("a"), points("b"), points("c")]
    one, two = store.unmeasured(groups), store.unmeasured(groups)
    first, second = next(one), next(two)
    assert names([first, second]) == [["a"], ["b"]]
    measure(store, first)
    third = next(one)
    # b is still being measured by the other: what only that one has comes last.
    assert names([third]) == [["c"]]
    measure(store, second)
    measure(store, third)
    assert names(one) == names(two) == []
    assert list((store.root / "claims").iterdir()) == []


def test_what_a_killed_process_had_claimed_is_measured_last_but_is_measured(store):
    next(store.unmeasured([points("a", "b")]))
    # In reverse: if it lives after all, the two meet in the middle.
    assert names(store.unmeasured([points("a", "b"), points("c")])) == [["c"], ["b", "a"]]


def test_of_two_measurements_of_a_point_the_first_stays(store):
    for run in ("first", "second"):
        store.write_point(IDENTITY, status="ok", rows=[], run_id=run)
    assert store.read_point(key(IDENTITY))["run_id"] == "first"
