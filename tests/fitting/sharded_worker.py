"""Fit to a model that fully_shard has divided over two processes; run as a script, once for each."""

import sys

import torch
from fitted_models import batches, gradients, loss, model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lowrank_ldu.fitting import choose_pivots, fit_basis, loss_gradients, target_layers


def main(rank, meeting):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    parts = [batches(seed=seed) for seed in (1, 2)]
    every = parts[0] + parts[1]
    network = model()
    for layer in (network.second, network.third):
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    expected = gradients(model(), every, loss)
    for layer, total in loss_gradients(network, target_layers(network, "all-linear"), parts[int(rank)], loss):
        reference = expected[f"{layer.name}.weight"]
        assert (total - reference).norm() <= 1e-5 * reference.norm()
    options = {"budget": 20}
    assert dict(choose_pivots(network, parts[int(rank)], loss, **options)) == dict(
        choose_pivots(model(), every, loss, **options)
    )
    basis = fit_basis(network, parts[int(rank)], loss, rank=2)
    basis.check_base(model())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
