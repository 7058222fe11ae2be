"""Small models with batches and losses, for what is fitted to them."""

import torch
from torch import nn
from torch.nn.functional import mse_loss


def model(dtype=torch.float32):
    """Three linear layers; the first is called twice."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.dropout = nn.Dropout(0.5)
            self.second = nn.Linear(6, 9)
            self.third = nn.Linear(9, 4, bias=False)

        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            hidden = torch.tanh(self.first(hidden))
            return self.third(torch.relu_(self.second(self.dropout(hidden))))

    torch.manual_seed(0)
    return Model().to(dtype)


def batches(count=3, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(5, 2, 6, generator=generator).to(dtype), torch.randn(5, 2, 4, generator=generator).to(dtype))
        for _ in range(count)
    ]


def loss(model, batch):
    return mse_loss(model(batch[0]), batch[1])


def gradients(model, data, loss):
    """Autograd's own, in evaluation mode, by parameter name."""
    model.eval()
    model.zero_grad()
    for batch in data:
        loss(model, batch).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found
