"""The plan: what the store lacks, why, and what it would cost in device time. Pure but for reading the store."""

from quantbench.estimate import estimate_study, store_lacks
from quantbench.memory import fit_lines
from quantbench.paired import smallest_difference_line
from quantbench.points import CHECKPOINT_JOBS, DEVICE_JOBS, JOB_OF_STAGE, LOGIN_JOBS, lacking_layers, start_label

# Parameters that place a point within a sweep: where one differs it is another point, not a changed one.
PLACE = ("batch_size", "input_tokens", "output_tokens", "load", "rate_per_s", "burstiness", "concurrency")
PLACE += ("m", "n", "k", "task", "part")


def plan_text(manifest, store, asked=None):
    """The plan as text: checkpoints and points missing per gpu and variant with the reason, skips, time expected and asked.

    asked  see device_lines
    """
    lacking = store_lacks(manifest, store)
    lines = [f"study {manifest['study']['study']}, store {store.root}"]
    lines += _checkpoint_lines(manifest, lacking)
    lines += [
        f"  {point['model']}/{point['scheme']}: its layers to be compared with the model's, on {point['texts'] or 'no texts'}"
        for point in lacking_layers(manifest, store)
    ]
    unique = {point["key"]: point for point in manifest["points"]}
    missing = [point for key, point in unique.items() if key in lacking]
    # What is missing may be a point of the store changed; without that, other studies' points say nothing here.
    known = store.read_points() if missing else {key: store.read_point(key) for key in unique}
    lines += ["", f"points: {len(unique) - len(missing)} of {len(unique)} measured, {len(missing)} missing"]
    groups, reason = {}, _reasons(manifest, store, known)
    for point in missing:
        name = (
            "/".join(filter(None, (point["model"], point["scheme"] and start_label(*_start(point)))))
            if JOB_OF_STAGE[point["stage"]] not in DEVICE_JOBS
            else ""
        )
        groups.setdefault((point["gpu"], name, point["stage"]), []).append(point)
    for (gpu, variant, stage), points in groups.items():
        why = "; ".join(sorted({reason(point) for point in points}))
        lines.append(f"  {gpu or '-':<6} {variant:<24} {stage:<11} {len(points):>4} missing: {why}")
    lines += _failure_lines(unique, known)
    for skip in manifest["skips"]:
        lines.append(f"  skipped: {skip['stage']} of {_who(skip)} on {skip['gpu']}: {skip['reason']}")
    times = device_lines(estimate_study(manifest, store, lacking), asked)
    return "\n".join([*lines, *_reach_lines(manifest), *fit_lines(manifest), "", *(times or ["nothing to measure"])])


def _reach_lines(manifest):
    """What the study's questions cannot see: a line per task whose number of questions the study states."""
    study = manifest["study"]
    comparisons = sum(scheme != study["baseline"] for scheme in study["schemes"])
    lines = [
        f"  {smallest_difference_line(entry['task'], entry['questions'], comparisons)}"
        for entry in study.get("accuracy", [])
        if entry["questions"] and comparisons
    ]
    return ["", "accuracy, before it is measured:", *lines] if lines else []


def why_missing(identity, given_up):
    """Why a point is not in the store: 'new', or the fields in which the nearest point that it takes the place of differs.

    identity  of the missing point, its checkpoint as the checkpoint's identity
    given_up  identities, likewise, of stored points that the study asks for no longer
    """
    differences = [changed_fields(other, identity) for other in given_up if _same_place(other, identity)]
    return f"changed: {', '.join(min(differences, key=len))}" if differences else "new"


def _reasons(manifest, store, known):
    """A function that says why a point of the manifest is missing."""
    checkpoints = {entry["key"]: entry["identity"] for entry in manifest["checkpoints"]}
    wanted = {point["key"] for point in manifest["points"]}

    def whole(identity):
        name = identity.get("checkpoint")
        if name and name not in checkpoints:
            kind = next((kind for kind in ("checkpoints", "models") if store.has_folder(kind, name)), None)
            checkpoints[name] = store.read_folder(kind, name)["identity"] if kind else None
        return {**identity, "checkpoint": checkpoints[name]} if name else identity

    given_up = {}
    for key, record in known.items():
        if key not in wanted:
            given_up.setdefault(_place(record["identity"]), []).append(whole(record["identity"]))
    return lambda point: why_missing(whole(point["identity"]), given_up.get(_place(point["identity"]), []))


def _place(identity):
    """What tells a point from the others of its study, but for its variant."""
    start = identity.get("start"), "emulated" in identity
    return identity["stage"], identity["gpu"], *start, *(identity["params"].get(name) for name in PLACE)


def _start(point):
    return point["scheme"], point.get("start"), point.get("emulated")


def _same_place(old, new):
    """Whether two points differ in nothing that makes them two points of one study rather than one point changed."""
    before, after = old.get("checkpoint"), new.get("checkpoint")
    if before and after and ("recipe" in before) != ("recipe" in after):
        return False
    if before and after and before.get("model") != after.get("model"):
        return False
    return _place(old) == _place(new) and bool(old.get("format")) == bool(new.get("format"))


def changed_fields(old, new, place=""):
    """["versions.vllm 0.25.1 -> 0.32.0", ...]: in what two identities differ."""
    fields = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            fields += changed_fields(before, after, f"{place}{name}.")
        elif before != after:
            # Digests and lists say nothing to a reader.
            plain = all(len(str(value)) <= 32 and not isinstance(value, list | dict) for value in (before, after))
            fields.append(f"{place}{name} {before} -> {after}" if plain else f"{place}{name}")
    return fields


def _checkpoint_lines(manifest, lacking):
    lines = []
    for entry in manifest["checkpoints"]:
        if entry["quantized"] and entry["key"] in lacking:
            lines.append(f"  {entry['model']}/{entry['scheme']}: to be quantized")
    total = sum(entry["quantized"] for entry in manifest["checkpoints"])
    return ["", f"checkpoints: {total - len(lines)} of {total} quantized", *lines]


def _failure_lines(unique, known):
    failed = {}
    for key, point in unique.items():
        record = known.get(key)
        if record and record["status"] != "ok":
            where = " ".join(filter(None, (point["gpu"], _who(point))))
            failed.setdefault((where, record["status"], record["reason"]), []).append(point["stage"])
    return [
        f"  {status}: {where}, {len(stages)} points: {reason}" for (where, status, reason), stages in failed.items()
    ]


def _who(entry):
    """A variant, a contender among the kernels, or the device itself."""
    return "/".join(filter(None, (entry["model"], entry["scheme"] or entry.get("contender")))) or "the device"


def duration(seconds):
    """90 -> "1.5 minutes", 9000 -> "2.5 hours"."""
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def device_lines(estimates, asked=None):
    """One line per gpu: what its jobs are expected to take, how many there are, and what Slurm will be asked for.

    estimates  {(rule, target): Estimate}
    asked      function of (rule, target, Estimate) that gives the seconds Slurm is asked for; None: the estimate itself
    """
    places = {}
    for (rule, target), estimate in estimates.items():
        place = "the quantizing node" if rule in CHECKPOINT_JOBS else None if rule in LOGIN_JOBS else target[0]
        if place:
            places.setdefault(place, []).append((rule, target, estimate))
    lines = []
    for place in sorted(places, key=lambda name: (" " in name, name)):
        jobs = places[place]
        seconds = sum(estimate.seconds for *_, estimate in jobs)
        hours = sum(asked(*job) if asked else job[-1].seconds for job in jobs) / 3600
        guessed = sorted({name for *_, estimate in jobs for name in estimate.guessed})
        basis = f"nothing like it measured yet: {', '.join(guessed)}" if guessed else "as measured before"
        count = f"{len(jobs)} job{'s' * (len(jobs) > 1)}"
        lines.append(
            f"device time on {place}: about {duration(seconds)} in {count}; `--profile slurm` asks for {hours:.1f} h; {basis}"
        )
    return lines
