"""What the fork server of a benchmark imports once for all its runs. Imports only: nothing here may touch a GPU."""

__all__: list[str] = []
