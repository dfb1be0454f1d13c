"""A model with its keys, accounts and worker: all that answers requests, but for HTTP."""

from pathlib import Path

from .accounts import Accounts
from .batching import Batcher
from .keys import Keys
from .metrics import Metrics
from .model import open_model
from .options import ServingOptions


class Service:
    """What the options name, opened. keys, model, accounts, metrics, batcher: its parts."""

    def __init__(self, args: ServingOptions):
        """UsageError where a key file, the model or the accounts cannot be used."""
        self.args, self.keys = args, Keys(args)
        self.model = open_model(args, args.name)
        self.accounts = Accounts(Path(args.accounts or Path(args.checkpoints_dir) / "served" / f"{self.model.name}.sqlite"))
        self.metrics = Metrics()
        self.batcher = Batcher(self.model, self.accounts, self.metrics, args.max_batch, args.max_wait_ms / 1000, args.max_queue, args.join)

    @property
    def title(self) -> str:
        """`ResNet32 of MNIST (hard)`"""
        many = len(self.keys.all)
        shown = self.args.response if self.keys.open else f"{many} key{'s' * (many > 1)}"
        return f"{self.model.name} of {self.model.dataset} ({shown})"

    def close(self, seconds: float) -> None:
        """Ends the worker, for which it waits so long, and closes the accounts."""
        self.batcher.close(seconds)
        self.accounts.close()
