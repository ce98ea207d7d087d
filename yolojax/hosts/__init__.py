"""Several processes that train or validate together: found, joined, agreed with and watched."""
