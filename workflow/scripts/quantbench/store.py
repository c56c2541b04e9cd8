"""The store: expensive, content-keyed, shared by studies. Nothing in it is a Snakemake output.

store/points/ab/abcd....json        one measured point: identity, status, reason, rows, run_id, measured_s
store/claims/abcd...                a process is about to measure this point; a hint, which nothing depends on
store/runs/<run_id>.json            one process that measured points: the provenance of its rows
store/checkpoints/abcd.../          a quantized checkpoint and its quantbench.json
store/models/abcd.../               a staged model and its quantbench.json
store/datasets/abcd.../             staged JSONL, one file per split, and quantbench.json

Every entry is written under a temporary name, flushed and renamed: a reader sees all of it or nothing.
"""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path

from quantbench.keys import canonical_json, key

# A point that failed for good is a result, and has a reason. A crash is not a point.
STATUSES = ("ok", "unsupported", "out_of_memory", "timeout", "invalid")


class Store:
    """Entries below one root folder; safe to share between processes and machines that see the same file system."""

    def __init__(self, root):
        self.root = Path(root)

    # --- points -----------------------------------------------------------------------------------------------------

    def point_path(self, point_key):
        return self.root / "points" / point_key[:2] / f"{point_key}.json"

    def has_point(self, point_key):
        return self.point_path(point_key).exists()

    def read_point(self, point_key):
        """The stored record, or None when the point has not been measured."""
        try:
            return json.loads(self.point_path(point_key).read_text())
        except FileNotFoundError:
            return None

    def read_points(self):
        """{key: record} of every point in the store."""
        paths = (self.root / "points").glob("*/[0-9a-f]*.json")
        return {path.stem: json.loads(path.read_text()) for path in paths}

    def unmeasured(self, groups):
        """Yield of each group of points those that the store lacks, asked for right before they are measured.

        groups  lists of points ({"key", ...}) that are measured together

        Where several processes have the same points to measure, they share them: groups that another has claimed come
        last and in reverse, and only what it has not finished by then: the two meet somewhere in the middle. So a claim
        that a killed process left behind delays nothing and is never wrong.
        """
        claimed_by_others = []
        for group in groups:
            left = [point for point in group if not self.has_point(point["key"])]
            # Not `all` of a generator: each of the group's points has to be claimed.
            if left and not all([self._claim(point["key"]) for point in left]):
                claimed_by_others.append(left)
            elif left:
                yield left
        for group in claimed_by_others:
            if left := [point for point in reversed(group) if not self.has_point(point["key"])]:
                yield left

    def _claim(self, point_key):
        """Whether no other process has claimed the point."""
        path = self._claim_path(point_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "x"):
                return True
        except FileExistsError:
            return False

    def _claim_path(self, point_key):
        return self.root / "claims" / point_key

    def write_point(self, identity, *, status, rows, run_id, reason=None, measured_s=None, energy=None):
        """Keep one measured point. `rows` are dicts without keys; build_tables adds gpu, model, scheme and run_id.

        energy: an EnergyMeter's record of the time that the rows took, where there was a meter

        Of two processes that measured one point at the same time the first to end wins: what a table or a report was
        made from does not change.

        Raises ValueError for an unknown status, or a status other than ok without a reason.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is not one of {', '.join(STATUSES)}")
        if status != "ok" and not reason:
            raise ValueError(f"a point that is {status} needs a reason")
        record = {"identity": identity, "status": status, "reason": reason, "rows": rows, "run_id": run_id}
        record["measured_s"] = measured_s
        record |= {"energy": energy} if energy else {}
        text = canonical_json(record)
        if not self.has_point(key(identity)):
            write_atomically(self.point_path(key(identity)), text)
        self._claim_path(key(identity)).unlink(missing_ok=True)

    def write_failure(self, identity, failure, run_id):
        """Keep a point that another run's (status, reason) decides."""
        self.write_point(identity, status=failure[0], reason=failure[1], rows=[], run_id=run_id)

    # --- runs -------------------------------------------------------------------------------------------------------

    def write_run(self, run):
        write_atomically(self.root / "runs" / f"{run['run_id']}.json", canonical_json(run))

    def read_run(self, run_id):
        """One run's record, or None."""
        try:
            return json.loads((self.root / "runs" / f"{run_id}.json").read_text())
        except FileNotFoundError:
            return None

    def read_runs(self):
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.root / "runs").glob("*.json"))}

    # --- folders: models, datasets, checkpoints ------------------------------------------------------------------------

    def folder(self, kind, entry_key):
        return self.root / kind / entry_key

    def has_folder(self, kind, entry_key):
        return (self.folder(kind, entry_key) / "quantbench.json").exists()

    def read_folder(self, kind, entry_key):
        """What quantbench.json of a staged model, data set or checkpoint says."""
        return json.loads((self.folder(kind, entry_key) / "quantbench.json").read_text())

    @contextlib.contextmanager
    def new_folder(self, kind, identity, record):
        """Fill a folder that appears in the store only when the block ends well.

        `record` is a dict the block may add to; it is written as quantbench.json with the identity.
        """
        final = self.folder(kind, key(identity))
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.parent / f".partial-{uuid.uuid4().hex}"
        partial.mkdir()
        try:
            yield partial
            write_atomically(partial / "quantbench.json", canonical_json({"identity": identity, **record}))
            for path in partial.rglob("*"):
                # Toolkits write some files with mode 0600; a shared store has to be readable.
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
            try:
                partial.rename(final)
            except OSError:
                # A second process may have finished the same entry first: identical by construction, so keep theirs.
                if not (final / "quantbench.json").exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def write_atomically(path, text):
    """Write text under a temporary name beside `path`, flush it to disk, rename it into place.

    Raises OSError, which always names a file: of a full disk the system itself says only that there is one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
