"""The command ``nn-meter``: the only place that prints or exits.

Who lives here: `main` (the entry point: errors become one line and an exit code), `console`
(printing, progress, logging), `options`, `steps` and `verdicts` (what commands share), and a
module per group of commands: `run`, `ruletest`, `workspaces` (create, connect), `registration`
(register, unregister), `listing`. A command's module is loaded when the command is called, so
``--help`` needs little more than click.
"""
