"""Where torch itself hangs now and then, programs that lockstep watches do not."""

from pathlib import Path

from tests.esper.lockstep.launching import launch


def test_a_model_may_outlive_its_group(tmp_path: Path) -> None:
    """Alone torch 2.13 got through between one and six of these rounds."""
    outcome = launch(
        tmp_path,
        """
        from torch.nn.parallel import DistributedDataParallel

        dist.barrier()  # a rank that leaves while another still connects ends that one's connecting
        dist.destroy_process_group()

        def once(number):
            meet = f"file://{sys.argv[1]}/{number}"
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
            model = DistributedDataParallel(torch.nn.Linear(4, 1))
            model(torch.ones(2, 4)).sum().backward()
            dist.barrier()
            dist.destroy_process_group()

        for number in range(30):
            once(number)
        """,
        str(tmp_path),
        nproc=3,
    )
    assert outcome.verdict == "clean", outcome.text
