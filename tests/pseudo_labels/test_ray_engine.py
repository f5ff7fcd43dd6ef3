"""Ray on this machine: the bytes of a local run, also when a node goes away in the middle."""

import dataclasses
import importlib.util
import os
import signal
import sys
import threading
import time

import pytest

from promerge_d2.labeler import ProMergeLabeler
from promerge_d2.utils.errors import UserError
from tests.helpers import ROOT, run_tool, use_tiny
from tests.pseudo_labels.helpers import (
    ON_A_DEVICE,
    label,
    read,
    save_photos,
    tiny_labeler,
    whole_lines,
)

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -e .[ray]")


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch, capsys):
    weights = use_tiny(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "promerge_d2.pseudo_labels.ray_engine", raising=False)
    where = ["--input", save_photos(tmp_path / "photos", 1), "--output", tmp_path / "l.json"]
    how = ["--backbone", "tiny", "--weights", weights, "--engine", "ray"]
    assert run_tool(monkeypatch, "label_images.py", *where, *how) == 3
    assert "--engine ray needs Ray (" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of two cores each; ``remove()`` takes the second away."""
    import ray
    from ray.cluster_utils import Cluster

    path = os.environ.get("PYTHONPATH")  # for the nodes' processes
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{path}" if path else str(ROOT)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = nodes.add_node(num_cpus=2)
    nodes.wait_for_nodes()
    ray.init(address=nodes.address, log_to_driver=False)
    nodes.remove = lambda: nodes.remove_node(second, allow_graceful=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    if path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = path


class Slow(ProMergeLabeler):
    """Takes its time, and fails on one of the photographs."""

    @staticmethod
    def grid_masks(features, config):
        time.sleep(0.2)
        found = ProMergeLabeler.grid_masks(features, config)
        if found.reason:
            raise ZeroDivisionError("surprise")
        return found


@needs_ray
@pytest.mark.slow
def test_the_bytes_are_those_of_a_local_run_though_a_node_goes_away(cluster, tmp_path):
    from promerge_d2.pseudo_labels.ray_engine import RayEngine

    photos = save_photos(tmp_path / "photos", 120)
    (photos / "0003.png").write_text("no image")
    labeler = tiny_labeler(Slow)
    label(labeler, photos, tmp_path / "local.json")
    output, removed = tmp_path / "ray.json", []

    def remove_in_the_middle():
        while whole_lines(output) < 20:
            time.sleep(0.05)
        cluster.remove()
        removed.append(whole_lines(output))

    thread = threading.Thread(target=remove_in_the_middle)
    thread.start()
    summary = label(labeler, photos, output, engine=RayEngine(workers=2, batch_size=4))
    thread.join()
    assert removed
    assert removed[0] < 95
    assert output.read_bytes() == (tmp_path / "local.json").read_bytes()
    assert len(summary.failures) == 25
    surprise = next(f for f in summary.failures if "surprise" in f["error"])
    assert "in grid_masks" in surprise["traceback"]
    run = read(tmp_path / "ray.run.json")
    assert (run["workers"], run["batch_size"], run["device"]) == (2, 4, "cpu")


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(("cls", "refine"), ON_A_DEVICE)
def test_on_a_device_of_torch_the_bytes_are_those_of_a_local_run(cluster, tmp_path, cls, refine):
    from promerge_d2.pseudo_labels.ray_engine import RayEngine

    labeler = tiny_labeler(cls, refine=refine, masks_device="cpu", refine_device="cpu")
    photos = save_photos(tmp_path / "photos", 8)
    label(labeler, photos, tmp_path / "local.json")
    label(labeler, photos, tmp_path / "ray.json", engine=RayEngine(workers=1, batch_size=4))
    assert (tmp_path / "ray.json").read_bytes() == (tmp_path / "local.json").read_bytes()


class Dying(ProMergeLabeler):
    """Ends its process at images without an object."""

    @staticmethod
    def grid_masks(features, config):
        found = ProMergeLabeler.grid_masks(features, config)
        if found.reason:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


@needs_ray
@pytest.mark.slow
def test_an_image_that_kills_workers_fails_alone(cluster, tmp_path, monkeypatch):
    from promerge_d2.pseudo_labels import ray_engine

    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    photos, output = save_photos(tmp_path / "photos", 6), tmp_path / "ray.json"
    engine = ray_engine.RayEngine(workers=1, batch_size=3)
    summary = label(tiny_labeler(Dying), photos, output, engine=engine)
    assert [failure["file_name"] for failure in summary.failures] == ["0004.png"]
    assert "Ray's worker process died of it" in summary.failures[0]["error"]
    assert [image["id"] for image in read(output)["images"]] == [1, 2, 3, 4, 6]


@needs_ray
@pytest.mark.slow
def test_a_cluster_without_a_gpu_is_refused(cluster, tmp_path):
    from promerge_d2.pseudo_labels.ray_engine import RayEngine

    photos = save_photos(tmp_path / "photos", 2)
    with pytest.raises(UserError, match="--device cpu"):
        label(tiny_labeler(), photos, tmp_path / "l.json", engine=RayEngine(device="cuda"))
    with pytest.raises(UserError, match=r"CPUs.*\b99\b"):
        label(tiny_labeler(), photos, tmp_path / "l.json", engine=RayEngine(workers=99))


@needs_ray
@pytest.mark.parametrize("stage", ["masks_device", "refine_device"])
def test_a_gpu_for_masks_or_refinement_is_refused(stage):
    from promerge_d2.pseudo_labels.ray_engine import RayEngine

    labeler = tiny_labeler()
    labeler.config = dataclasses.replace(labeler.config, **{stage: "cuda"})
    with pytest.raises(UserError, match=stage):
        list(RayEngine()([], labeler, threading.Event()))
