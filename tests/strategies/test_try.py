import time
import pytest
from .harness import Crew, job_for
from .reference import assert_equal, first_part, train_alone


@pytest.mark.parametrize("opt", [("sgd"), ("adam")])
@pytest.mark.parametrize("net", ["plain", "normalised", "branched"])
def test_try(crew, net, opt):
    t = time.perf_counter()
    job = job_for(net, "data", optimizer=opt, weight_decay=0.01, steps=7)
    reports = crew.run(job, (1, 2, 5), first_part(job))
    print(
        time.perf_counter() - t,
        [r.outcome for r in reports],
        reports[0].records[0],
        [r["samples"] for r in reports[0].records],
    )
    assert_equal(reports[0].state, train_alone(job), atol=1e-9)
