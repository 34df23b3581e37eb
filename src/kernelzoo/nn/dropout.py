import torch

from ..ops.dropout import dropout


class Dropout(torch.nn.Dropout):
    __doc__ = torch.nn.Dropout.__doc__

    def forward(self, input):
        return dropout(input, self.p, self.training, self.inplace)
