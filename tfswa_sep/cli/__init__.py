"""The command line: one module per command, and what they share.

main.py              all commands together; default_command.py: those that may be left out
shared_options.py    options of several commands; help.py: the layout of help pages
terminal.py          output, exit codes and signals; usage_errors.py: messages about invalid command lines
progress.py          progress bars; downloads.py: those of models
separate_report.py   what `separate` prints
diagnostics.py       what `doctor` examines
"""
