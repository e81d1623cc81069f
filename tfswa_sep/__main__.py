"""`python -m tfswa_sep` is `tfswa-sep`."""

from tfswa_sep.cli.main import main

if __name__ == "__main__":
    main()
