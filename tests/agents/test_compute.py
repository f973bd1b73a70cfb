import pytest
import torch

from agents.compute import AgentCompute


def test_agent_runs_on_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with AgentCompute(0).running():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_agent_draws_do_not_depend_on_draws_outside():
    def draws(outside: int) -> list[float]:
        compute, drawn = AgentCompute(3), []
        for _ in range(3):
            torch.rand(outside)
            with compute.running():
                drawn.append(torch.rand(1).item())
        return drawn

    assert draws(0) == draws(17)
    assert len(set(draws(0))) == 3  # the stream goes on, it does not start again


def test_draws_outside_do_not_depend_on_the_agent():
    torch.manual_seed(1)
    undisturbed = torch.rand(1).item()
    torch.manual_seed(1)
    with AgentCompute(3).running():
        torch.rand(5)
    assert torch.rand(1).item() == undisturbed


def test_state_is_restored_after_an_error_inside():
    def fail():
        with AgentCompute(3).running():
            torch.rand(1)
            raise ZeroDivisionError

    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_seconds_are_counted_since_last_asked():
    compute = AgentCompute(0)
    with compute.running():
        torch.rand(10)
    assert compute.take_seconds() > 0
    assert compute.take_seconds() == 0
