"""What a pipeline can do with a case: detect anomalies, restore, de-identify, convert to BIDS.

A worker process may hold several cases at once, so that one is read or written while another is
computed; computing itself, and writing, are one at a time. Models are loaded once per process.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.batch.bids import sidecar_facts, write_sidecars
from medgen.batch.cluster import DEVICE_OF_WORKER
from medgen.batch.pipeline import Convert, Deidentify, Detect, Restoring, steps_of
from medgen.batch.thumbnail import write_restoration_thumbnail, write_thumbnail
from medgen.batch.work import Job, Skip, turn
from medgen.devices import resolve_device
from medgen.errors import InputError
from medgen.io.walk import Location

if TYPE_CHECKING:
    from medgen.package import ModelPackage
    from medgen.tasks.detect import Detection
    from medgen.tasks.restoration import Restoration
    from medgen.volume import Volume

_COMPUTING = threading.Lock()
_WRITING = threading.Lock()
# Models kept at hand in a process: as many as a chain may have steps, and more.
MODELS = 8
# A retry after running out of memory gets this part of what the network may use beyond the scan.
SMALLER = 0.5
DEIDENTIFICATION = "deidentification.json"


def verb_of(job: Job) -> Callable[[Job, Path], tuple[dict[str, Any], str]]:
    """The function that does a job: it fills the draft, and gives a result and the input's hash."""
    if isinstance(job.task, Deidentify):
        return deidentify
    if isinstance(job.task, Convert):
        return convert
    return detect if isinstance(job.task, Detect) else restore


def detect(job: Job, draft: Path) -> tuple[dict[str, Any], str]:
    """Find anomalies in one image and write what ``medgen detect-anomalies`` writes."""
    from medgen import io
    from medgen.tasks.detect_files import output_names, write_files

    assert isinstance(job.task, Detect)
    volume = io.read(job.sources[0].file if _one_file(job) else job.sources)
    dicom = job.task.dicom if volume.provenance.format == "dicom" else ()
    with turn(_COMPUTING):
        found: Any = _detect(job, job.task, volume, dicom)
    bids = job.stem is not None
    with turn(_WRITING):
        kinds = write_files(
            found, draft, report=job.task.report, command=f"batch run ({job.task.name})",
            dicom=dicom, bids=bids,
        )  # fmt: skip
        names = output_names(
            volume.provenance.sources, report=job.task.report, dicom=dicom, bids=bids
        )
        thumbnail = names["findings"].replace("findings.json", "thumbnail.png")
        write_thumbnail(draft / thumbnail, found)
    outputs = {kind: names[kind] for kind in kinds}
    if job.stem is not None:
        source = f"{job.id.rpartition('/')[0]}/{job.sources[0].file.name}"
        write_sidecars(draft, list(outputs.values()), source)
    result = {
        "values": _values(found),
        "flags": [*found.fallbacks, *_flags(job)],
        "report": outputs.get("report"),
        "thumbnail": thumbnail,
        "outputs": outputs,
    }
    return result, hash_sources(job.sources)


def _one_file(job: Job) -> bool:
    return not job.private and len(job.sources) == 1


def _detect(job: Job, task: Detect, volume: Volume, dicom: Sequence[str]) -> Detection:
    from medgen.tasks.detect import detect_anomalies

    folder = job.models[task.model]
    package = _package(folder)
    device = os.environ.get(DEVICE_OF_WORKER) or job.device
    return detect_anomalies(
        volume, package, method=_method(folder, device), device=device, seed=job.seed,
        max_memory_gb=_memory(job, volume, package), threshold=task.threshold, dicom_out=dicom,
    )  # fmt: skip


def _memory(job: Job, volume: Volume, package: ModelPackage | None) -> float:
    """Most memory to use, in GB: in later tries less for the network."""
    from medgen.tasks.limits import check_memory

    if job.attempt == 1:
        return job.memory_gb
    need = check_memory(
        volume.geometry.shape, volume.voxels.shape[0], job.memory_gb,
        spacing_mm=volume.geometry.spacing_mm,
        manifest=None if package is None else package.manifest,
    )  # fmt: skip
    return need + (job.memory_gb - need) * SMALLER ** (job.attempt - 1)


@lru_cache(maxsize=MODELS)
def _package(folder: str) -> ModelPackage:
    from medgen.package import load_package

    return load_package(Path(folder))


@lru_cache(maxsize=MODELS)
def _method(folder: str, device: str) -> Any:
    """The network, ready on its device: loaded once, used for every case of this process."""
    where = resolve_device(device)
    return _package(folder).method().to(where)


def _values(found: Detection) -> dict[str, Any]:
    return {
        "scan_score": round(found.score, 6),
        "p_value": None if found.p_value is None else round(found.p_value, 6),
        "findings": len(found.findings),
        "findings_ml": round(sum(f.volume_mm3 for f in found.findings) / 1000, 6),
        "largest_ml": round(max((f.volume_mm3 for f in found.findings), default=0.0) / 1000, 6),
        "highest_peak": round(max((f.peak for f in found.findings), default=0.0), 6),
    }


def restore(job: Job, draft: Path) -> tuple[dict[str, Any], str]:
    """Inpaint, refine, denoise or translate one image, or all of it, one after the other."""
    from medgen import io
    from medgen.tasks.restoration_files import output_names, write_files

    task = job.task
    assert isinstance(task, Restoring)
    volume = io.read(job.sources[0].file if _one_file(job) else job.sources)
    dicom, bids = task.dicom and volume.provenance.format == "dicom", job.stem is not None
    with turn(_COMPUTING):
        *before, last = _restore(job, task, volume)
    with turn(_WRITING):
        kinds = write_files(
            last, draft, report=task.report, dicom=dicom, bids=bids, steps=before,
            command=f"batch run ({task.name})",
        )  # fmt: skip
        names = output_names(
            last.verb, last.kind, volume.provenance.sources, report=task.report, dicom=dicom,
            bids=bids,
        )  # fmt: skip
        thumbnail = names["run"].replace("run.json", "thumbnail.png")
        write_restoration_thumbnail(draft / thumbnail, last)
    outputs = {kind: names[kind] for kind in kinds}
    if bids:
        source = f"{job.id.rpartition('/')[0]}/{job.sources[0].file.name}"
        write_sidecars(draft, list(outputs.values()), source)
    files = len(outputs) + 1  # and the thumbnail
    if dicom:
        files += len(list((draft / outputs["dicom"]).iterdir())) - 1
        outputs["dicom"] += "/*.dcm"
    result = {
        "files": files,
        "values": _restored_values(last),
        "flags": [*last.fallbacks, *_flags(job)],
        "report": outputs.get("report"),
        "thumbnail": thumbnail,
        "outputs": outputs,
    }
    return result, hash_sources(job.sources)


def _restore(job: Job, task: Restoring, volume: Volume) -> list[Restoration]:
    from medgen.tasks.chain import Tools, run_steps

    device = os.environ.get(DEVICE_OF_WORKER) or job.device
    steps = steps_of(task)
    packages = {name: _package(folder) for name, folder in job.models.items()}
    # A detector is asked through its package, and loads its own network.
    restorers = {step.model for step in steps} & job.models.keys()
    return run_steps(
        volume, steps,
        Tools(
            packages, {name: _method(job.models[name], device) for name in restorers},
            device=device, seed=job.seed, force=task.force,
            max_memory_gb=_memory(job, volume, packages.get(steps[0].model)),
        ),
    )  # fmt: skip


def _restored_values(last: Restoration) -> dict[str, Any]:
    """What the summary lists; of measures those that are numbers."""
    from medgen.tasks.restoration_files import restoration_summary

    summary = restoration_summary(last)
    uncertainty = summary["uncertainty"] or {}
    measures = summary["measures"].items()
    invented_ml = summary["invented"]["ml"]
    return {
        "voxels": " x ".join(map(str, summary["shape"])),
        "spacing_mm": " x ".join(f"{mm:.3g}" for mm in summary["spacing_mm"]),
        "invented_ml": None if invented_ml is None else round(invented_ml, 6),
        "uncertainty": uncertainty.get("median"),
        **{name: round(value, 6) for name, value in measures if isinstance(value, int | float)},
    }


def _flags(job: Job) -> list[str]:
    if job.attempt == 1:
        return []
    return [f"try {job.attempt}: done with less memory after an earlier try ended early"]


def deidentify(job: Job, draft: Path) -> tuple[dict[str, Any], str]:
    """Write the objects of one series again without what identifies the patient."""
    from medgen.io.deidentify import Delivery
    from medgen.io.dicom_archive import Zips
    from medgen.tasks.detect_files import write_json

    assert isinstance(job.task, Deidentify)
    delivery = Delivery(draft, job.task.profile, job.key, tree=False)
    with Zips() as zips:
        for location in job.sources:
            delivery.add(location, zips)
    report = delivery.report()
    reasons = [f"{entry['reason']} ({entry['objects']})" for entry in report["set_aside"]]
    if not delivery.written:
        if delivery.damaged:
            raise InputError(f"no object could be written: {'; '.join(reasons)}")
        raise Skip(f"set aside: {'; '.join(reasons)}")
    write_json(draft / DEIDENTIFICATION, report)
    aside = sum(entry["objects"] for entry in report["set_aside"])
    result = {
        "values": {"objects": delivery.written, "set_aside": aside},
        "flags": [f"set aside: {reason}" for reason in reasons],
        # Not every name: an archive of 100,000 series has tens of millions of them.
        "outputs": {"report": DEIDENTIFICATION, "objects": "*.dcm"},
        "files": 1 + delivery.written,
    }
    return result, hash_sources(job.sources)


def convert(job: Job, draft: Path) -> tuple[dict[str, Any], str]:
    """Write one DICOM series as NIfTI with a sidecar, as BIDS names it."""
    from medgen import io
    from medgen.tasks.detect_files import write_json

    assert job.stem is not None
    volume = io.read(job.sources)
    name = f"{job.stem}.nii.gz"
    io.write_nifti(draft / name, volume.voxels[0], volume.geometry, like=volume, kind="image")
    outputs = {"image": name, "sidecar": f"{job.stem}.json"}
    write_json(draft / outputs["sidecar"], sidecar_facts(job.facts, volume))
    digest = hash_sources(job.sources)
    shape = " x ".join(map(str, volume.geometry.shape))
    values = {"suffix": job.stem.rpartition("_")[2], "voxels": shape, "objects": len(job.sources)}
    return {"values": values, "flags": [], "outputs": outputs}, digest


def hash_sources(sources: Sequence[Location]) -> str:
    """SHA-256 of the contents of an input, whatever its files are called and in any order."""
    from medgen.io.dicom_archive import Zips

    digests = []
    # A zip's list of members can be long: it is read once, and not for each of them.
    with Zips() as zips:
        for location in sources:
            with zips.open(location) as stream:
                digest = hashlib.sha256()
                while block := stream.read(1 << 20):
                    digest.update(block)
                digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
