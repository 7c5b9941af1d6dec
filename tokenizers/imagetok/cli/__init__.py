"""The command line: `imagetok`, with a module for each family of commands.

`program` puts them together and turns errors into exit codes; `options` are what several commands
take. Commands import what they need when they run, so that `imagetok --help` is quick.
"""

from imagetok.cli.program import main

__all__ = ["main"]
