"""Neighbours on one cluster: other runs, cases that wait in line, workers that come later."""

from __future__ import annotations

import threading

import psutil
from crowded_work import act, quick
from open_cluster import open_cluster

from medgen.batch import engine as module
from medgen.batch.cluster import Layout, existing_cluster, local_cluster
from medgen.batch.engine import Engine
from medgen.batch.work import Job


def job(name: str, root: str = "") -> Job:
    return Job(
        id=name, sources=(), root=root, private=False, drafts="",
        task=None,  # type: ignore[arg-type]  # the engine does not look at it
    )  # fmt: skip


def layout(lanes: int) -> Layout:
    return Layout(1, 1, lanes, 1.0, ("cpu",))


def test_two_runs_on_one_scheduler_get_their_own_outcomes() -> None:
    found: dict[str, list[str]] = {"a": [], "b": []}
    with open_cluster(2) as address:

        def run(root: str) -> None:
            with existing_cluster(address) as client:
                jobs = [job(f"case-{n}", root) for n in range(5)]
                found[root] += [
                    str(outcome.result["root"])
                    for _, outcome in Engine(client, quick, 60).run(jobs)
                ]

        runs = [threading.Thread(target=run, args=(root,)) for root in found]
        for thread in runs:
            thread.start()
        for thread in runs:
            thread.join(60)
    assert found == {"a": ["a"] * 5, "b": ["b"] * 5}


def test_waiting_for_a_neighbour_is_not_a_case_s_own_time() -> None:
    with local_cluster(layout(3)) as client:
        ended = Engine(client, act, timeout_s=2.5).run([job(f"short-{n}") for n in range(6)])
        assert {outcome.state for _, outcome in ended} == {"done"}


def test_who_waits_for_a_hanging_case_does_not_fail_with_it() -> None:
    with local_cluster(layout(2)) as client:
        jobs = [job("long-1"), job("short-2"), job("short-3")]
        states = {j.id: o.state for j, o in Engine(client, act, timeout_s=3).run(jobs)}
    assert states == {"long-1": "failed", "short-2": "done", "short-3": "done"}


def test_a_worker_that_cannot_be_ended_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(module, "_KILL", 0)  # as without a nanny: nothing comes of it
    with local_cluster(layout(1)) as client:
        ((_, outcome),) = Engine(client, act, timeout_s=1).run([job("long-1")])
    assert outcome.state == "failed" and "longer than" in str(outcome.reason)


def test_workers_that_come_later_are_used(monkeypatch) -> None:
    monkeypatch.setattr(module, "_COUNT_EVERY_S", 0.0)
    held = [1]
    monkeypatch.setattr(module, "total_lanes", lambda client: held[0])
    with local_cluster(layout(1)) as client:
        engine = Engine(client, quick, 60)
        ended = engine.run([job(f"case-{n}") for n in range(30)])
        next(ended)
        assert len(engine._flights) <= 3
        held[0] = 10
        next(ended)
        next(ended)
        assert len(engine._flights) > 6
        assert len(list(ended)) == 27


def test_workers_of_this_machine_are_out_of_reach_of_others() -> None:
    with local_cluster(layout(1)):
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            c.laddr.ip
            for process in family
            for c in process.net_connections()
            if c.status == psutil.CONN_LISTEN
        ]
    assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}


def test_a_cluster_without_workers_is_waited_for_and_that_is_said(monkeypatch) -> None:
    monkeypatch.setattr(module, "_ALONE_S", 0.5)
    monkeypatch.setattr(module, "_COUNT_EVERY_S", 0.1)
    said: list[str] = []
    with local_cluster(layout(1)) as client:
        cluster = client.cluster
        kept = dict(cluster.worker_spec)
        cluster.worker_spec.clear()
        cluster.sync(cluster._correct_state)

        def alone() -> None:
            said.append("alone")
            cluster.worker_spec.update(kept)
            cluster.sync(cluster._correct_state)

        engine = Engine(client, quick, 60, on_alone=alone)
        assert [o.state for _, o in engine.run([job("case-1")])] == ["done"]
    assert said == ["alone"]
