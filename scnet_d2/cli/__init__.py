"""What the sub-commands of `scnet` do, a module with `run(args)` each; arguments: scnet_command."""
